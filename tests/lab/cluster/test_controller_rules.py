"""Rules that controllers decide by, one at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.lab.client import ApiError, Key
from infra.lab.controllers import scheduling, signing
from infra.lab.controllers.framework import Controller, percent, selects
from infra.lab.controllers.revisions import pruned, safe_hash
from infra.lab.controllers.schedule import Schedule

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab

JSON = dict[str, Any]


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("*/15 * * * *", "2026-01-31 23:50", "2026-02-01 00:00"),
        ("30 4 1 1 *", "2026-01-01 04:30", "2027-01-01 04:30"),
        ("0 0 29 2 *", "2026-03-01 00:00", "2028-02-29 00:00"),
        ("0 9-17/4 * * mon-fri", "2026-11-20 17:30", "2026-11-23 09:00"),
        ("0 0 13 * 5", "2026-11-02 00:00", "2026-11-06 00:00"),  # the 13th or a Friday
        ("@hourly", "2026-01-01 00:00", "2026-01-01 01:00"),
        ("0 0 * * 7", "2026-11-21 00:00", "2026-11-22 00:00"),
    ],
)
def test_a_schedule_finds_its_next_time(text: str, after: str, expected: str) -> None:
    found = Schedule.parse(text).next(datetime.fromisoformat(after).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "* * 0 * *", "a * * * *", "*/0 * * * *", "5-1 * * * *"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"fields|not within|no number"):
        Schedule.parse(text)


def test_a_schedule_that_never_comes_has_no_next_time() -> None:
    assert Schedule.parse("0 0 31 2 *").next(datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_label_selectors_combine_all_their_parts() -> None:
    selector = {
        "matchLabels": {"a": "1"},
        "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]},
            {"key": "c", "operator": "NotIn", "values": ["z"]},
            {"key": "d", "operator": "DoesNotExist"},
        ],
    }
    assert selects(selector, {"a": "1", "b": "y"})
    assert not selects(selector, {"a": "1", "b": "y", "c": "z"})
    assert not selects(selector, {"a": "1", "b": "y", "d": ""})
    assert not selects(None, {"a": "1"})
    assert selects({}, {})


def test_percentages_round_in_the_direction_that_keeps_the_promise() -> None:
    assert (percent("25%", 3, up=True), percent("25%", 3, up=False), percent(2, 3, up=True)) == (1, 0, 2)


def test_templates_that_mean_the_same_have_the_same_hash() -> None:
    one = {"spec": {"containers": [{"name": "a", "env": [], "resources": {}}], "volumes": None}}
    two = {"spec": {"containers": [{"name": "a"}]}}
    assert safe_hash(pruned(one)) == safe_hash(pruned(two))
    assert safe_hash(pruned(one)) != safe_hash(pruned(one), collisions=1)
    assert not set(safe_hash(one)) & set("aeiou013")


def node(name: str = "n", labels: JSON | None = None, taints: list[JSON] | None = None) -> JSON:
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"taints": taints or []}}


def test_node_affinity_terms_are_alternatives_and_their_expressions_are_not() -> None:
    def pod(*terms: JSON) -> JSON:
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [*terms]}}
        return {"spec": {"affinity": {"nodeAffinity": required}}}

    fast = {"key": "disk", "operator": "In", "values": ["fast"]}
    many = {"key": "cores", "operator": "Gt", "values": ["8"]}
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}
    assert not scheduling.selected(pod({"matchExpressions": [fast, many]}), node(labels={"disk": "fast", "cores": "8"}))
    assert scheduling.selected(pod({"matchExpressions": [fast, many]}), node(labels={"disk": "fast", "cores": "16"}))
    assert scheduling.selected(pod({"matchExpressions": [fast]}, here), node())
    assert not scheduling.selected(pod({}), node())


def test_a_taint_keeps_away_whoever_does_not_tolerate_it() -> None:
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    exact = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    wrong = {"key": "gpu", "value": "no"}
    every = {"operator": "Exists"}
    for tolerations, kept_away in (([], True), ([wrong], True), ([exact], False), ([every], False)):
        pod = {"spec": {"tolerations": tolerations}}
        assert (scheduling.untolerated(pod, node(taints=[taint])) is not None) is kept_away


def test_a_key_changed_while_it_is_worked_on_is_worked_on_again_and_never_twice_at_once() -> None:
    async def script() -> tuple[int, int]:
        running = most = done = 0

        async def reconcile(_: Key) -> None:
            nonlocal running, most, done
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            done += 1

        controller = Controller("test", reconcile)
        controller.add(("", "a"))
        await asyncio.sleep(0.005)
        controller.add(("", "a"))
        controller.add(("", "a"))
        await asyncio.sleep(0.1)
        await controller.stop()
        return most, done

    assert asyncio.run(script()) == (1, 2)


def test_a_failed_reconciliation_is_retried_unless_its_namespace_is_ending() -> None:
    async def script() -> dict[str, int]:
        calls = {"conflict": 0, "ending": 0}

        async def reconcile(key: Key) -> None:
            calls[key[1]] += 1
            if key[1] == "ending":
                causes = [{"reason": "NamespaceTerminating"}]
                raise ApiError(403, "Forbidden", "no", {"details": {"causes": causes}})
            if calls["conflict"] < 3:
                raise ApiError(409, "Conflict", "stale")

        controller = Controller("test", reconcile)
        controller.add(("", "conflict"))
        controller.add(("", "ending"))
        await asyncio.sleep(0.2)
        await controller.stop()
        return calls

    assert asyncio.run(script()) == {"conflict": 3, "ending": 1}


def authority(days: float = 365) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    return builder.sign(key, hashes.SHA256()), key


def request(*names: x509.NameAttribute[Any], dns: str | None = None) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


def test_a_signed_certificate_is_backdated_verifies_and_never_outlives_its_ca() -> None:
    certificate, key = authority(days=1)
    now = datetime.now(UTC).replace(microsecond=0)
    asked = request(x509.NameAttribute(NameOID.COMMON_NAME, "alice"), dns="a.example")
    usages = ["client auth", "digital signature"]
    signed = x509.load_pem_x509_certificate(signing.sign(asked, usages, 86400 * 30, certificate, key, now))
    signed.verify_directly_issued_by(certificate)
    assert signed.not_valid_before_utc == now - timedelta(minutes=5)
    assert signed.not_valid_after_utc == certificate.not_valid_after_utc
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]


def test_a_node_that_is_silent_is_marked_unknown_and_tainted(lab: ClusterLab) -> None:
    nodes, leases = "/api/v1/nodes", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

    async def script() -> JSON:
        silent = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "silent"}}
        await lab.client.create(nodes, silent)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": None,
                 "lastTransitionTime": "2026-01-01T00:00:00Z", "message": ""}  # fmt: skip
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "silent"},
            "spec": {"holderIdentity": "silent", "renewTime": "2026-01-01T00:00:00.000000Z"},
        }
        await lab.client.create(leases, lease)
        await lab.client.patch(f"{nodes}/silent/status", {"status": {"conditions": [ready]}})
        found = await lab.until(nodes, lambda o: len(o["", "silent"]["spec"].get("taints") or []) == 2)
        await lab.client.delete(f"{nodes}/silent")
        return found["", "silent"]

    found = lab.run(script())
    assert found["status"]["conditions"][0]["status"] == "Unknown"
    assert {t["key"] for t in found["spec"]["taints"]} == {"node.kubernetes.io/unreachable"}
