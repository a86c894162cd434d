"""A Linkerd whose anchor is kept offline: its anchor rotated, then its issuer alone, each signed by `capstan sign`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from capstan.pki.inspect import Certificate
from capstan.vaults.opening import open_vault
from tests.rotation.rotations import Rotations, wait_for

if TYPE_CHECKING:
    from tests.rotation.runner import Ran, Runner

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]

ASKED = "prepare > request-signing > end"


class Ceremony:
    """The machine without a network: a root's certificate and key, and `capstan sign`."""

    def __init__(self, runner: Runner, directory: Path, name: str) -> None:
        self.runner = runner
        self.home = directory / name.replace(" ", "-")
        self.home.mkdir()
        self._run("--new-root", "--common-name", name, "--out-dir", self.home, "--no-passphrase", "--yes")

    @property
    def root(self) -> Certificate:
        return Certificate.from_pem((self.home / "root-cert.pem").read_text())

    def sign(self, request: Path) -> Path:
        """The signed chain of a request."""
        chain = self.home / f"{request.parent.name}-chain.pem"  # `capstan sign` writes over nothing
        by = ("--root-cert", self.home / "root-cert.pem", "--root-key", self.home / "root-key.pem")
        self._run("--request", request, *by, "--out", chain, "--yes")
        return chain

    def _run(self, *arguments: str | Path) -> None:
        ran = self.runner.run("sign", *arguments, home=self.home)
        assert ran.code == 0, ran.stderr


def request_of(case: Rotations, *what: str) -> Path:
    """Run until the issuer's request is there, and die: what was asked must outlive the process that asked."""
    ran = case.run("--offline-root", *what, die_at=ASKED)
    assert ran.killed, (ran.code, ran.stderr[-2000:])
    (request,) = [each for each in case.home.rglob("*.csr.pem") if case.rotation in str(each)]
    return request


def finished(case: Rotations, ran: Ran, *gates: str) -> None:
    """The run ended the rotation with these approvals, its account verifies, and nobody lost a connection."""
    assert ran.code == 0, f"exit code {ran.code}: {ran.stderr[-3000:]}"
    assert (ran.data["completed"], ran.data["resumed"]) == (True, True)
    head = case.record()["notes"]["evidence-head"]
    verified = case.runner.run("evidence", "verify", ran.data["evidence"], "--head", head, "-o", "json", home=case.home)
    assert (verified.code, verified.data["finished"]) == (0, True), verified.stderr
    entries = [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]
    assert [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"] == list(gates)
    case.require_no_failure()


def live_issuers(case: Rotations) -> set[str]:
    return {pod["leaf"]["issuer"] for pod in case.lab.pods() if not pod["stopping"]}


@pytest.mark.proves(
    "identity", "offline anchor", "anchor, then issuer alone, signed by hand; killed, refused, taken back"
)
def test_an_anchor_and_then_an_issuer_are_signed_by_a_root_that_nothing_here_ever_sees(
    rotations: Rotations, tmp_path: Path
) -> None:
    ours, foreign = (Ceremony(rotations.runner, tmp_path, name) for name in ("Offline root", "Foreign root"))

    # 1. The anchor. What another root signed is believed as little as a chain of nobody's request.
    request = request_of(rotations)
    stray = tmp_path / "stray.pem"
    stray.write_text((foreign.home / "root-cert.pem").read_text())
    refused = rotations.run("--offline-root", "--signed-chain", str(stray))
    assert refused.code == 1
    assert "is not answered" in " ".join(refused.stderr.split())
    assert rotations.live_roots() == rotations.old, "something was changed by a chain that was refused"
    ran = rotations.run("--offline-root", "--signed-chain", str(ours.sign(request)))
    finished(rotations, ran, "trust", "issue", "distrust")
    assert ran.data["old_root_refused"] is True
    assert rotations.live_roots() == {ours.root.fingerprint} == set(ran.data["roots"]["after"])
    assert rotations.minted_roots() == [], "a root was minted, though it is kept offline"

    # 2. The issuer alone, under it: no key of the anchor is in any vault, so that it has to be signed there again.
    case = Rotations(rotations.lab, rotations.runner, rotations.home, f"{rotations.rotation}-issuer")
    case.forget_earlier()
    before, pods = (
        live_issuers(case),
        {(p["namespace"], p["pod"]) for p in case.lab.pods() if p["namespace"] != "linkerd"},
    )
    without = case.run("--what", "issuer")
    assert "the present root's key is not in the vault" in " ".join(without.stderr.split())
    request = request_of(case, "--what", "issuer")
    wrong = case.run("--offline-root", "--what", "issuer", "--signed-chain", str(foreign.sign(request)))
    assert wrong.code == 3, wrong.stderr
    assert "chain does not verify" in wrong.stderr
    assert live_issuers(case) == before
    ran = case.run("--offline-root", "--what", "issuer", "--signed-chain", str(ours.sign(request)))
    finished(case, ran, "issue")
    assert live_issuers(case) == set(ran.data["issuers"])
    assert not live_issuers(case) & before
    assert case.live_roots() == {ours.root.fingerprint}

    # 3. And back, without whoever has the key: the issuer there was is in the vault.
    back = case.roll_back("--offline-root")
    assert (back.code, back.data["completed"]) == (0, True), back.stderr[-3000:]
    wait_for(lambda: live_issuers(case) == before, "leaves of the issuer of before", 5.0)
    assert {(p["namespace"], p["pod"]) for p in case.lab.pods() if p["namespace"] != "linkerd"} == pods
    case.require_no_failure()

    # 4. The root's key is nowhere here: no entry of the vault, no file below the home.
    secret = (ours.home / "root-key.pem").read_text().splitlines()[1]
    vault = open_vault(f"local:{case.home / 'vault'}")
    assert not [entry for entry in vault.list() if secret in vault.get(entry).unsafe_text()]
    files = [each for each in case.home.rglob("*") if each.is_file()]
    assert not [each for each in files if secret.encode() in each.read_bytes()]
