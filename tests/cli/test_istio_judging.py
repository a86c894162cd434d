"""What `capstan istio` says of ages, versions and holders."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cli.istio_judging import Grade, ages, held, versions, worst
from capstan.cluster.workloads import PodRef
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.systems.istio.istiods import Istiod
from capstan.systems.istio.layout import Layout
from capstan.systems.istio.observe import View
from capstan.systems.istio.proxies import Proxy
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import parse_version
from capstan.trust.observation import Issuer, Signer
from tests.trust.domains import NEW, NOW, OLD, cluster, only, peer

if TYPE_CHECKING:
    from capstan.trust.observation import ClusterObservation

DAY = dt.timedelta(days=1)
CA = "1" * 64


def root_of(days: float) -> Any:
    return mint_root(RootPolicy(common_name="r", validity=days * DAY), 1, NOW)


# --- ages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "grade"), [(61, Grade.OK), (60, Grade.WARNING), (31, Grade.WARNING), (30, Grade.ERROR), (0.5, Grade.ERROR)]
)
def test_the_days_that_are_left_decide(days: float, grade: Grade) -> None:
    (age,) = ages("east", [root_of(days).certificate], None, NOW, 60, 30)
    assert (age.days, age.grade) == (int(days), grade)


def test_a_root_that_has_ended_is_an_error_with_negative_days() -> None:
    (age,) = ages("east", [root_of(1).certificate], None, NOW + 3 * DAY, 60, 30)
    assert (age.days, age.grade) == (-2, Grade.ERROR)


def test_every_root_and_the_signing_ca_are_named_and_a_self_signed_ca_only_once() -> None:
    root = root_of(400)
    issuer = mint_issuer(IssuerPolicy(validity=40 * DAY), root, NOW).certificate
    both = ages("east", [root.certificate, root_of(10).certificate], issuer, NOW, 60, 30)
    assert [(age.role, age.grade) for age in both] == [
        ("root", Grade.OK), ("root", Grade.ERROR), ("signing CA", Grade.WARNING),
    ]  # fmt: skip
    alone = ages("east", [root.certificate], root.certificate, NOW, 60, 30)
    assert [age.role for age in alone] == ["root"]


def test_an_error_is_worse_than_a_warning_whatever_their_exit_codes() -> None:
    assert worst([Grade.WARNING, Grade.ERROR, Grade.OK]) is Grade.ERROR
    assert worst([Grade.OK, Grade.WARNING]) is Grade.WARNING
    assert worst([]) is Grade.OK
    assert (int(Grade.OK), int(Grade.ERROR), int(Grade.WARNING)) == (0, 1, 2)


# --- versions -------------------------------------------------------------------------------------------------------


def view(istiods: dict[str, str], *proxies: tuple[str, str, str]) -> View:
    """Istiods by revision, and proxies as kind, revision and version."""
    seen = cluster([peer()])
    return View(
        Layout("istio-system", Mode.PLUG_IN, (), "cluster.local", "cacerts"), None, Bundle(), None,
        tuple(
            Istiod(PodRef("istio-system", f"istiod-{rev}", rev), rev, parse_version(version), {}, True, (), None, (),
                   Signer(f"pod istiod-{rev}", None, frozenset(), None), False)
            for rev, version in istiods.items()
        ),
        tuple(
            Proxy(peer(f"p-{n}"), PodRef("app", f"p-{n}", str(n)), kind, rev, parse_version(version), {}, None, False)
            for n, (kind, rev, version) in enumerate(proxies)
        ),
        {}, seen,
    )  # fmt: skip


def remarks(of: View) -> dict[tuple[str, str], tuple[Grade, str]]:
    return {(running.what, running.version): (running.grade, running.remark) for running in versions("east", of)}


def test_one_version_everywhere_is_counted_and_well() -> None:
    found = versions("east", view({"default": "1.30.1"}, *[("sidecar", "default", "1.30.1")] * 3))
    assert [(one.what, one.version, one.count, one.grade) for one in found] == [
        ("istiod", "1.30.1", 1, Grade.OK), ("sidecar", "1.30.1", 3, Grade.OK),
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["1.24.4", "1.25.1"])
def test_an_istiod_that_hands_out_one_of_several_roots_is_an_error(version: str) -> None:
    grade, remark = remarks(view({"default": version}))["istiod", version]
    assert grade is Grade.ERROR
    assert "istio#55793" in remark


@pytest.mark.parametrize("version", ["1.0.7", "1.1.3", "1.1.7"])
def test_a_sidecar_that_does_not_load_a_changed_root_is_an_error(version: str) -> None:
    grade, remark = remarks(view({"default": "1.1.9"}, ("sidecar", "default", version)))["sidecar", version]
    assert grade is Grade.ERROR
    assert "1.1.8" in remark


@pytest.mark.parametrize(
    ("proxy", "control", "said"),
    [
        ("1.31.0", "1.30.1", "newer than its istiod"),
        ("1.28.2", "1.30.1", "more than one minor version behind"),
        ("1.29.0", "1.30.1", ""),
    ],
)
def test_a_proxy_is_compared_with_the_istiod_of_its_own_revision(proxy: str, control: str, said: str) -> None:
    of = view({"asm-1-30": control, "asm-1-28": "1.28.2"}, ("sidecar", "asm-1-30", proxy))
    grade, remark = remarks(of)["sidecar", proxy]
    assert (said in remark) is True
    assert grade is (Grade.WARNING if said else Grade.OK)


def test_a_ztunnel_that_needs_a_restart_and_a_tag_without_a_version_are_warnings() -> None:
    found = remarks(view({"default": "1.28.1"}, ("ztunnel", "", "1.28.1"), ("gateway", "default", "latest")))
    assert found["ztunnel", "1.28.1"][0] is Grade.WARNING
    assert found["gateway", "unknown"] == (Grade.WARNING, "its image's tag names no version")


# --- holders --------------------------------------------------------------------------------------------------------


def mesh(**changes: Any) -> ClusterObservation:
    settled = cluster([peer("web-1")], declared=(("configmaps istio-ca-root-cert", only(OLD)),), issuer_fingerprint=CA)
    signer = Signer("pod istio-system/istiod-1", CA, only(OLD), only(OLD))
    return dataclasses.replace(settled, **{"signers": (signer,), **changes})


def problems(observed: ClusterObservation, *troubles: str) -> list[str]:
    return [f"{one.name}: {one.problem}" for one in held(observed, NOW, troubles) if one.problem]


def test_a_mesh_in_which_all_hold_the_same_has_no_problem() -> None:
    assert problems(mesh()) == []
    assert len(held(mesh(), NOW)) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"declared": (("configmap a/istio-ca-root-cert", only(NEW)),)}, f"lacks {OLD[:16]}; also trusts {NEW[:16]}"),
        ({"signers": (Signer("pod i", NEW, only(NEW), only(OLD)),)}, "not by the configured CA"),
        ({"signers": (Signer("pod i", None, frozenset(), None, "refused"),)}, "pod i: refused"),
        ({"signers": (Signer("pod i", CA, only(OLD), None),)}, "its roots cannot be read"),
        ({"peers": (peer("web-2", trusts=only(OLD, NEW)),)}, f"also trusts {NEW[:16]}"),
        ({"peers": (peer("web-2", anchors=only(NEW)),)}, "chains to none of these roots"),
        ({"peers": (peer("web-2", until=NOW),)}, "its leaf ended at"),
        ({"peers": (peer("web-2", trusts=None, why="timed out"),)}, "app/web-2: timed out"),
        ({"peers": (peer("web-2", anchors=None),)}, "it cannot be read"),
        ({"peers": ()}, "no proxy was found: nothing is verified"),
        ({"issuer": Issuer(NEW, only(NEW), NOW + DAY)}, "not by the configured CA"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value[:20],
)
def test_whoever_differs_or_is_silent_is_named_with_how(changes: dict[str, Any], said: str) -> None:
    (problem,) = problems(mesh(**changes))
    assert said in problem


def test_a_place_that_could_not_be_read_is_a_problem() -> None:
    assert problems(mesh(), "configmaps: forbidden") == ["configmaps: forbidden: cannot be read"]
