"""After a whole rotation its private keys are in the vault and in the issuer's Secret, and nowhere else."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from capstan.vaults.opening import open_vault
from tests.canary.scanner import Needles, scan
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.canary.scanner import Finding

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Where the cluster keeps the issuer's key by design: the Secret identity reads, and what a CLI install upgrades from.
KEYS_BELONG = {("secrets", "linkerd", "linkerd-identity-issuer"), ("secrets", "linkerd", "linkerd-config-overrides")}
# Keys that are none of ours: of the webhooks, made when Linkerd was installed.
NOT_OURS = "-k8s-tls"
LISTS = (
    "/api/v1/configmaps", "/api/v1/secrets", "/api/v1/events", "/api/v1/pods", "/api/v1/services", "/api/v1/namespaces",
    "/apis/events.k8s.io/v1/events", "/apis/coordination.k8s.io/v1/leases", "/apis/apps/v1/deployments",
    "/apis/apps/v1/statefulsets", "/apis/apps/v1/daemonsets", "/apis/apps/v1/replicasets",
    "/apis/apps/v1/controllerrevisions",
)  # fmt: skip


class Rotated:
    """A rotation as a user makes it, with a Prefect of its own, and everything it may have written anywhere."""

    def __init__(self, lab: RunningLab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.home = directory / "home"
        self.objects = directory / "objects"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "CAPSTAN_"))}
        done = subprocess.run(
            [sys.executable, "-m", "capstan.cli", "rotate", "--kubeconfig", str(lab.kubeconfig), "--approve", "auto"],
            env={
                **environment, "CAPSTAN_HOME": str(self.home), "HOME": str(directory), "TMPDIR": str(self.made("tmp")),
                "PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_TO_API_ENABLED": "true",
            },
            stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (directory / "stdout").write_bytes(done.stdout)
        (directory / "stderr").write_bytes(done.stderr)
        self.dump_objects()

    @property
    def database(self) -> Path:
        return self.home / "prefect" / "prefect.db"

    @property
    def account(self) -> Path:
        (file,) = (self.home / "evidence").glob("*.jsonl")
        return file

    def made(self, name: str) -> Path:
        (self.directory / name).mkdir(exist_ok=True)
        return self.directory / name

    def keys(self) -> dict[str, str]:
        """Every key of the rotation, as the vault has it: name -> PEM."""
        vault = open_vault(f"local:{self.home / 'vault'}")
        return {entry.name: vault.get(entry).unsafe_private_key_pem() for entry in vault.find({})}

    def dump_objects(self) -> None:
        """The cluster's objects as files, but for the Secrets that hold keys by design."""
        self.made("objects")
        for path in LISTS:
            kind = path.rpartition("/")[2]
            items = self.lab.call("GET", path)["items"]
            kept = [item for item in items if not self._may_hold_keys(kind, item["metadata"])]
            text = "\n".join(json.dumps(_decoded(kind, item)) for item in kept)
            (self.objects / f"{path.strip('/').replace('/', '-')}.json").write_text(text)

    def findings(self, *keys: str) -> list[Finding]:
        """Any private key, and these in particular, in all that was written outside the vault."""
        vault = [self.home / "vault", self.home / "vault.key"]
        log = self.lab.directory / "lab.log"
        return scan([self.directory, log], keys, exclude=[*vault, self.lab.directory / "cluster"])

    @staticmethod
    def _may_hold_keys(kind: str, metadata: dict[str, Any]) -> bool:
        name = metadata["name"]
        return (kind, metadata.get("namespace"), name) in KEYS_BELONG or (kind == "secrets" and name.endswith(NOT_OURS))


def _decoded(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    """A Secret with its data in clear beside it, so that nothing depends on the scanner's unwrapping."""
    if kind != "secrets":
        return item
    clear = {name: base64.b64decode(value).decode("latin-1") for name, value in (item.get("data") or {}).items()}
    return {**item, "clear": clear}


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotated]:
    lab = start_lab(tmp_path_factory.mktemp("lab"), "--size", "small", "--leaf-seconds", "20")
    yield Rotated(lab, tmp_path_factory.mktemp("rotated"))
    lab.stop()


def test_no_private_key_is_outside_the_vault_after_a_rotation_and_each_planted_leak_is_found(rotated: Rotated) -> None:
    keys = rotated.keys()
    assert {name.removeprefix("capstan-linkerd-") for name in keys} == {
        "root", "issuer-cluster", "previous-issuer-cluster", "capstan-evidence-signing-key",
    }  # fmt: skip
    # 1. What is searched is there: Prefect's database with this flow's rows, the account, the record, the output.
    with closing(sqlite3.connect(rotated.database)) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone()[0] == 1
        assert database.execute("SELECT count(*) FROM task_run").fetchone()[0] > 15
    assert len(rotated.account.read_text().splitlines()) > 20
    assert "capstan-rotation-linkerd" in (rotated.objects / "api-v1-configmaps.json").read_text()
    assert b"completed" in (rotated.directory / "stdout").read_bytes()
    # 2. The keys really are where they belong, so that the search knows what to look for.
    secret = rotated.lab.call("GET", "/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer")
    assert (
        base64.b64decode(secret["data"]["key.pem"]).decode().strip() == keys["capstan-linkerd-issuer-cluster"].strip()
    )
    # 3. Nothing.
    assert rotated.findings(*keys.values()) == []
    # 4. The root's key, which no cluster ever needs, is in nothing the lab keeps either.
    root = keys["capstan-linkerd-root"]
    assert [f for f in scan([rotated.lab.directory], [root]) if f.what.startswith("known key")] == []
    # 5. And it would have been found: leaks planted where careless lines of ours would put them, each of its own key.
    planted = {}
    for plant in (in_a_log_line, in_a_prefect_log, in_a_parameter, in_a_result, in_the_account, in_a_config_map):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        planted[plant(rotated, pem), Needles([key]).forms[0][1]] = pem
    assert len(planted) == 6
    found = {(finding.path.name, finding.what) for finding in rotated.findings(*planted.values())}
    assert found >= set(planted)


def in_a_log_line(rotated: Rotated, key: str) -> str:
    with (rotated.directory / "stderr").open("a") as log:
        log.write(f"23:11:02 minted {key!r}\n")
    return "stderr"


def in_a_prefect_log(rotated: Rotated, key: str) -> str:
    return in_the_database(rotated, "UPDATE log SET message = ? WHERE id = (SELECT id FROM log LIMIT 1)", f"made {key}")


def in_a_parameter(rotated: Rotated, key: str) -> str:
    return in_the_database(rotated, "UPDATE flow_run SET parameters = ?", json.dumps({"issuer": {"key": key}}))


def in_a_result(rotated: Rotated, key: str) -> str:
    storage = rotated.home / "prefect" / "storage"
    storage.mkdir(exist_ok=True)
    pickled = base64.encodebytes(cloudpickle.dumps({"root": key})).decode()
    (storage / "2a7c").write_text(json.dumps({"metadata": {"serializer": {"type": "pickle"}}, "result": pickled}))
    return "2a7c"


def in_the_account(rotated: Rotated, key: str) -> str:
    with rotated.account.open("a") as account:
        account.write(json.dumps({"kind": "minted", "body": {"key": key}}) + "\n")
    return rotated.account.name


def in_a_config_map(rotated: Rotated, key: str) -> str:
    body = {"metadata": {"name": "notes"}, "data": {"root.key": key}}
    rotated.lab.call("POST", "/api/v1/namespaces/capstan-system/configmaps", body)
    rotated.dump_objects()
    return "api-v1-configmaps.json"


def in_the_database(rotated: Rotated, statement: str, value: str) -> str:
    with closing(sqlite3.connect(rotated.database)) as database:
        changed = database.execute(statement, (value,)).rowcount
        database.commit()
    assert changed >= 1
    return rotated.database.name
