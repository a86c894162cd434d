"""What a rotation refuses, and that it says who or what stands in its way, and changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.config import ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import GateRefused, GateTimedOut
from capstan.rotation import Rotation, changing, open_rotation, preparing, waiting
from capstan.trust.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rotation.rotations import Rotations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SYSTEM = "/api/v1/namespaces/capstan-system"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/capstan-system/leases"
ISSUER = "/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer"
ROOTS = "/api/v1/namespaces/linkerd/configmaps/linkerd-identity-trust-roots"


@contextmanager
def opened(case: Rotations, **policy: Any) -> Iterator[Rotation]:
    """The rotation itself, to take its steps one by one."""
    domain = TrustDomain(
        clusters=(ClusterRef(kubeconfig=str(case.lab.kubeconfig)),),
        home=str(case.home),
        policy=RotationPolicy(**policy),
    )
    with open_rotation(domain, case.rotation) as rotation:
        yield rotation


def version(case: Rotations, path: str) -> str:
    return case.lab.call("GET", path)["metadata"]["resourceVersion"]


def test_another_holder_of_the_lock_is_named_and_nothing_is_begun(rotations: Rotations) -> None:
    lab = rotations.lab
    lab.call("POST", "/api/v1/namespaces", {"metadata": {"name": "capstan-system"}})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {
        "holderIdentity": "ci-runner-7/4711/c0ffee",
        "leaseDurationSeconds": 3600,
        "acquireTime": now,
        "renewTime": now,
    }
    lab.call("POST", LEASES, {"metadata": {"name": "capstan-rotation-linkerd"}, "spec": spec})
    lease, roots = f"{LEASES}/capstan-rotation-linkerd", version(rotations, ROOTS)
    before = version(rotations, lease)
    ran = rotations.run()
    assert ran.code == 1
    assert "another rotation is under way" in ran.stderr
    assert "ci-runner-7/4711/c0ffee" in " ".join(ran.stderr.split())
    assert ran.stdout == ""
    assert (version(rotations, lease), version(rotations, ROOTS)) == (before, roots)
    assert rotations.minted_roots() == []


def test_without_a_terminal_it_waits_for_approval_refuses_another_rotation_and_then_goes_on(
    rotations: Rotations,
) -> None:
    roots = version(rotations, ROOTS)
    # 1. Nobody can be asked: exit 4, with the mesh untouched.
    waiting_run = rotations.run(approve="ask")
    assert waiting_run.code == 4
    assert "trust waits for approval" in waiting_run.stderr
    assert version(rotations, ROOTS) == roots
    assert rotations.record()["approvals"] == []
    (minted,) = rotations.minted_roots()
    # 2. Another rotation of the same domain is refused while this one is unfinished.
    other = rotations.run(rotation="another")
    assert other.code == 1
    assert "another rotation of this trust domain is unfinished" in other.stderr
    assert rotations.rotation in other.stderr
    # 3. Run again with an approver it goes on, to the root it had minted.
    ran = rotations.run()
    rotations.require_finished(ran)
    assert ran.data["resumed"] is True
    assert ran.data["roots"]["after"] == [minted.fingerprint]


def test_a_proxy_that_cannot_be_read_stops_the_first_gate_and_is_named(rotations: Rotations) -> None:
    victim = next(pod["pod"] for pod in rotations.lab.pods() if pod["pod"].startswith("storefront"))
    rotations.lab.add_fault(
        {"path": f"/pods/{victim}/portforward", "userAgent": "capstan", "times": 0, "action": {"status": 500}}
    )
    deadline = timedelta(seconds=5)
    with opened(rotations, restart_deadline=deadline) as rotation, pytest.raises(GateTimedOut) as refused:
        waiting.watch_gate(rotation, Phase.PREPARE)
    assert len(refused.value.stragglers) == 1
    assert f"shop/{victim}" in refused.value.stragglers[0]
    assert f"shop/{victim}" in str(refused.value)
    assert rotations.minted_roots() == []


def test_the_issuer_is_not_switched_while_a_proxy_does_not_trust_it_and_is_once_it_does(rotations: Rotations) -> None:
    with opened(rotations) as rotation:
        preparing.mint(rotation)
        before = version(rotations, ISSUER)
        # 1. The new root is in no bundle: identity could not even start with the issuer.
        with pytest.raises(GateRefused, match="does not verify against the declared trust roots"):
            changing.switch_issuer(rotation, "cluster")
        # 2. Bundle and control plane have it; the workloads were not restarted and do not.
        changing.widen_bundle(rotation, "cluster")
        changing.restart_control_plane(rotation, "cluster", Phase.TRUST)
        with pytest.raises(GateRefused, match="would not trust this issuer") as refused:
            changing.switch_issuer(rotation, "cluster")
        stale = {f"{pod['namespace']}/{pod['pod']}" for pod in rotations.lab.pods() if pod["namespace"] != "linkerd"}
        assert len(stale) == 9
        assert all(name in refused.value.observed for name in stale)
        assert version(rotations, ISSUER) == before
    # 3. The whole rotation restarts them first.
    rotations.require_finished(rotations.run())
    assert version(rotations, ISSUER) != before
