"""An identity that misbehaves, and somebody who writes into its issuer's Secret, in the middle of a rotation.

Two replicas of identity, none of whose Events is ever written. Whoever comes between is found out before any leaf needs
what he put there, a good issuer is put back, and the rotation stops, is run again, and drops nothing.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from capstan.pki.inspect import Certificate
from capstan.pki.mint import IssuerPolicy, Minted, mint_issuer
from capstan.rotation import material
from capstan.vaults.opening import open_vault
from tests.rotation.rotations import Rotations, wait_for
from tests.rotation.runner import as_administrator
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rotation.runner import Ran, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEAF_SECONDS = int(os.environ.get("CAPSTAN_TEST_LEAF_SECONDS", "30"))  # longer on a machine that others use, too
SECRET = "/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer"
MERGE = "application/merge-patch+json"
BEFORE_SWITCH = "issue > back-up-issuer/cluster > begin"
BEFORE_RESTART = "issue > restart-control-plane/issue/cluster > begin"
WHILE_LEAVES_RENEW = "issue > gate/distrust > begin"
REFUSED = 3


def started(directory: Path, *more: str) -> RunningLab:
    options = ["--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "25"]
    return start_lab(directory, *options, "--control-plane-replicas", "2", *more, program=("infra.lab",))


@pytest.fixture
def case(tmp_path: Path, runner: Runner) -> Iterator[Rotations]:
    """A rotation on a lab with two replicas of identity, whose Events all get lost."""
    lab = started(tmp_path / "lab")
    found = Rotations(lab, runner, tmp_path / "home", "troubled")
    found.forget_earlier()
    lab.add_fault({"method": "POST", "path": "/namespaces/linkerd/events", "times": 0, "action": {"status": 500}})
    yield found
    lab.stop()


def encoded(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def foreign(certificate: str, key: Any) -> tuple[str, str, dict[str, Any], str]:
    """The request by which somebody puts this issuer there."""
    text = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return "PATCH", SECRET, {"data": {"crt.pem": encoded(certificate), "key.pem": encoded(text)}}, MERGE


def new_root(case: Rotations) -> Minted:
    """The root that the rotation has minted, with its key."""
    vault = open_vault(f"local:{case.home / 'vault'}")
    (reference,) = case.minted_roots()
    kept = material.issuer_material(vault, reference)
    return Minted(kept.certificate, kept.key)


def rsa_issuer(root: Minted) -> tuple[str, Any]:
    """A certificate that identity loads and cannot sign with."""
    key = rsa.generate_private_key(65537, 2048)
    like = mint_issuer(IssuerPolicy(common_name="identity.linkerd.cluster.local"), root, datetime.now(UTC)).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.raw.subject)
        .issuer_name(root.certificate.raw.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(like.not_before)
        .not_valid_after(like.not_after)
    )
    for extension in like.raw.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(value, extension.critical)
    return Certificate(root.key.sign(builder)).pem(), key


def held(case: Rotations) -> str:
    """Fingerprint of the issuer in the Secret; its key has to be its own."""
    data = case.lab.call("GET", SECRET)["data"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(data["crt.pem"]))
    key = load_pem_private_key(base64.b64decode(data["key.pem"]), None)
    assert key.public_key() == certificate.public_key(), "certificate and key are of two issuers"
    return certificate.fingerprint(hashes.SHA256()).hex()


def interrupted(case: Rotations, point: str, *calls: tuple[str, str, Any, str]) -> Ran:
    """A run into which somebody writes as it comes to a point."""
    named = ("--rotation", case.rotation, "--approve", "auto", "-o", "json")
    return case.runner.run(
        "rotate", *case.options, *named, home=case.home, kubeconfig=case.lab.kubeconfig, call_at={point: calls}
    )


def require_put_back(case: Rotations, ran: Ran, issuer: str, *said: str) -> None:
    """The run stopped with one error that says all this, and the Secret holds that issuer again."""
    assert ran.code == REFUSED, (ran.code, ran.stderr[-3000:])
    shown = " ".join(ran.stderr.split())  # lines are wrapped
    for text in (*said, f"({issuer[:16]}) was put back", "last written by"):
        assert text in shown, ran.stderr[-3000:]
    assert "PRIVATE KEY" not in ran.stderr
    assert held(case) == issuer
    account = case.home / "evidence" / f"{case.domain}-{case.rotation}.jsonl"
    last = [json.loads(line) for line in account.read_text().splitlines() if '"issuer-put-back"' in line][-1]
    assert last["body"]["after"][0] == issuer


@pytest.mark.long
@pytest.mark.proves(
    "identity", "lost Events", "a whole rotation with two replicas, none of whose Events is ever written"
)
@pytest.mark.proves(
    "identity", "foreign writer", "RSA after the switch, another's key while leaves renew: put back, stopped, gone on"
)
def test_whoever_writes_a_bad_issuer_in_between_is_found_out_and_the_rotation_goes_on(case: Rotations) -> None:
    # 1. Both roots are trusted everywhere; the issuer is about to be switched.
    killed = case.run(die_at=BEFORE_SWITCH)
    assert killed.killed, (killed.code, killed.stderr[-2000:])
    rsa_pem, rsa_key = rsa_issuer(new_root(case))
    ours = case.record()["issuers"]["cluster"]
    # 2. Switched; before identity is started on it, an RSA issuer under the new root takes its place.
    stopped = interrupted(case, BEFORE_RESTART, foreign(rsa_pem, rsa_key))
    require_put_back(case, stopped, ours, "identity would not sign with the issuer it was given", "RSA 2048")
    # 3. Gone on; while leaves are renewed, our certificate gets another's key.
    certificate = base64.b64decode(case.lab.call("GET", SECRET)["data"]["crt.pem"]).decode()
    another = foreign(certificate, ec.generate_private_key(ec.SECP256R1()))
    stopped = interrupted(case, WHILE_LEAVES_RENEW, another)
    require_put_back(
        case, stopped, ours, "was replaced by one that cannot sign", "key.pem is not the key of the certificate"
    )
    # 4. Gone on, to the end; nobody lost a connection.
    case.require_finished(case.run())
    assert events(case.lab) == []


def events(lab: RunningLab) -> list[str]:
    """Reasons of identity's Events."""
    found = lab.call("GET", "/api/v1/namespaces/linkerd/events")["items"]
    return [item["reason"] for item in found if item["reason"].startswith("Issuer")]


@pytest.mark.long
@pytest.mark.proves(
    "identity", "dead watcher", "no replica ever reloads: each is started anew, and a rotation drops nothing"
)
def test_a_rotation_with_dead_watchers_is_whole(tmp_path: Path, runner: Runner) -> None:
    lab = started(tmp_path / "lab", "--identity-watcher-dead", "true")
    case = Rotations(lab, runner, tmp_path / "home", "dead")
    try:
        case.forget_earlier()
        case.require_finished(case.run())
    finally:
        lab.stop()


@pytest.mark.long
@pytest.mark.proves(
    "identity",
    "clock skew",
    "wrong clocks: each replica and node is named and nothing begun; set right, all is whole",
)
def test_a_replica_with_a_wrong_clock_keeps_a_rotation_from_being_begun(tmp_path: Path, runner: Runner) -> None:
    lab = started(tmp_path / "lab")
    case = Rotations(lab, runner, tmp_path / "home", "skewed")
    deployment = "/apis/apps/v1/namespaces/linkerd/deployments/linkerd-identity"

    def clock(text: str | None) -> None:
        template = {"metadata": {"annotations": {"lab.capstan.dev/identity-clock": text}}}
        as_administrator(str(lab.kubeconfig), "PATCH", deployment, {"spec": {"template": template}}, MERGE)
        wait_for(lambda: settled(lab, deployment), "identity to roll", 90)

    try:
        case.forget_earlier()
        before = held(case)
        # Behind, so that its leaves are valid at once (and end early): ahead, no proxy of a new pod would take one. On
        # any node, because this very rollout moves the replicas.
        clock("*=-15")
        stopped = case.run()
        assert stopped.code == REFUSED, stopped.stderr[-2000:]
        shown = " ".join(stopped.stderr.split())
        assert "every identity's clock agrees with ours" in shown
        for pod in lab.pods():
            if pod["pod"].startswith("linkerd-identity-") and not pod["stopping"]:
                assert f"replica {pod['pod']} on node {pod['node']}: " in shown
        assert held(case) == before
        assert case.live_roots() == case.old
        clock(None)
        wait_for(lambda: all(begun(pod) for pod in lab.pods()), "leaves that begin in the future to be gone", 90)
        lab.reset_prober()
        case.require_finished(case.run())
    finally:
        lab.stop()


def begun(pod: dict[str, Any]) -> bool:
    """Whether a proxy's leaf is valid already."""
    return pod["leaf"] is not None and datetime.fromisoformat(pod["leaf"]["not_before"]) <= datetime.now(UTC)


def settled(lab: RunningLab, deployment: str) -> bool:
    item = lab.call("GET", deployment)
    status, wanted = item["status"], item["spec"]["replicas"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return status.get("observedGeneration") == item["metadata"]["generation"] and counts == [wanted] * 3
