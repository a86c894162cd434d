"""A self-signed Istio, killed in a re-date and in the way to a new key, and run again: both end; and a re-date's way
back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from capstan.pki.bundle import Bundle
from tests.rotation.points import chains, listed
from tests.rotation_istio.conftest import mesh
from tests.rotation_istio.meshes import Turned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from capstan.pki.inspect import Certificate
    from tests.rotation.runner import Ran

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("istio-self-signed-kill")]

LAB = ("--system", "istio", "--ca", "self-signed", "--istio-version", "1.30.1", "--multiroot")
SECRET = "PUT /api/v1/namespaces/istio-system/secrets/istio-ca-secret"
A_FEW = [
    "prepare > mint-redated > begin",
    f"trust > redate-root/cluster > {SECRET}, before its commit",
    f"trust > redate-root/cluster > {SECRET}, after its commit",
]
REDATE = listed(Path(__file__).with_name("points-redate.txt"))
NEW_KEY = listed(Path(__file__).with_name("points-new-key.txt"))


def redate_zones(points: Sequence[str]) -> Iterator[str]:
    """From the write on, proxies come to hold the re-dated root by themselves: then the phase may be passed over."""
    stretch = ""
    for point in points:
        phase = point.partition(" > ")[0]
        if point.endswith("secrets/istio-ca-secret, after its commit"):
            stretch = phase
        elif phase != stretch:
            stretch = ""
        yield stretch


def new_key_zones(points: Sequence[str]) -> Iterator[str]:
    """As for a plug-in CA: a rotation dies once between a write of `cacerts` and the end of its phase."""
    stretch = ""
    for point in points:
        phase = point.partition(" > ")[0]
        if point.endswith(("secrets/cacerts, after its commit", "secrets, after its commit")):
            stretch = phase
        elif phase != stretch or "prove-refusal" in point:
            stretch = ""
        yield stretch


class SelfSigned(Turned):
    """A mesh whose istiod made its root itself."""

    def signer(self) -> Certificate:
        """The root in the Secret."""
        text = base64.b64decode(self.secret("istio-ca-secret")["data"]["ca-cert.pem"])
        return Bundle.parse_lenient(text, "istio-ca-secret").certificates[0]

    def redate(self, die_at: str = "") -> Ran:
        """`capstan istio transition`."""
        return self.runner.run(
            "istio", "transition", "--rotation", self.rotation, "--approve", "auto", "-o", "json",
            home=self.home, kubeconfig=self.lab.kubeconfig, die_at=die_at,
        )  # fmt: skip

    def require_redated(self, ran: Ran, before: Certificate) -> Certificate:
        """One re-dated root, made once, in the Secret and with every proxy; nobody dropped."""
        assert ran.code == 0, ran.stderr[-3000:]
        assert ran.data["completed"] is True
        after = self.signer()
        assert (after.spki_sha256, after.subject) == (before.spki_sha256, before.subject)
        assert after.fingerprint != before.fingerprint
        assert self.live_roots() == {after.fingerprint}
        record = self.record()
        assert (record["outcome"], record["issuers"]) == ("completed", {"cluster": after.fingerprint})
        assert [entry["decision"] for entry in record["approvals"]] == ["approved"]
        self.require_no_failure()
        return after


@pytest.fixture
def case(turned: Callable[..., Turned]) -> SelfSigned:
    made = turned()
    begun = SelfSigned(made.lab, made.runner, made.home, made.rotation, system="istio")
    begun.begin()
    return begun


def test_a_redate_is_taken_back_to_the_certificate_there_was(case: SelfSigned) -> None:
    before = case.signer()
    after = case.require_redated(case.redate(), before)
    ran = case.roll_back()
    case.require_rolled_back(ran, refused=False)
    assert ran.data["roots"] == {"before": [after.fingerprint], "after": [before.fingerprint]}
    assert case.signer() == before


def killed_and_finished(case: SelfSigned, points: Sequence[str]) -> None:
    before = case.signer()
    for point in points:
        ran = case.redate(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
        assert point in ran.passed
    case.require_redated(case.redate(), before)


@pytest.mark.long
def test_a_redate_killed_around_its_write_is_one_redate(case: SelfSigned) -> None:
    killed_and_finished(case, A_FEW)


@pytest.mark.long
@pytest.mark.parametrize("points", chains(REDATE, 16, redate_zones), ids=lambda points: f"{len(points)}-points")
def test_a_redate_killed_at_each_of_these_points_is_one_redate(case: SelfSigned, points: list[str]) -> None:
    killed_and_finished(case, points)


@pytest.mark.long
@pytest.mark.parametrize("points", chains(NEW_KEY, 30, new_key_zones), ids=lambda points: f"{len(points)}-points")
def test_a_new_key_killed_at_each_of_these_points_has_one_new_root_and_drops_nobody(
    points: list[str], tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, *LAB) as (lab, runner):  # afterwards it is a plug-in CA: a lab serves once
        made = SelfSigned(lab, runner, tmp_path / "home", "case-1", system="istio")
        made.begin()
        for point in points:
            ran = made.run(die_at=point)
            assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
            assert point in ran.passed
            made.require_one_new_root_at_most()
        made.require_finished(made.run())
