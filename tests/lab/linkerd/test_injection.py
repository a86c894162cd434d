"""What the proxy-injector adds, to what, and what it leaves alone."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest

from infra.lab.linkerd import inject, manifests, sidecar
from infra.lab.linkerd.flags import format_duration, parse_duration, parse_flags
from infra.lab.linkerd.metrics import minor_version
from infra.lab.linkerd.wire import CertifyRequest, WireError

JSON = dict[str, Any]
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"


def pod(**metadata: Any) -> JSON:
    container = {"name": "app", "image": "x", "ports": [{"containerPort": 8080}]}
    return {"metadata": metadata, "spec": {"containers": [container]}}


def apply(document: JSON, operations: list[JSON]) -> JSON:
    """RFC 6902, `add` only."""
    result = copy.deepcopy(document)
    for operation in operations:
        assert operation["op"] == "add"
        *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        target: Any = result
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if isinstance(target, list):
            target.insert(len(target) if last == "-" else int(last), operation["value"])
        else:
            target[last] = operation["value"]
    return result


def injected(document: JSON, *, native: bool = True, owner: tuple[str, str] = ("Deployment", "web")) -> JSON:
    config = sidecar.SidecarConfig("linkerd", "edge-26.8.3", "cluster.local", native, "1s")
    return apply(document, inject.patch(document, namespace="shop", roots_pem=PEM, config=config, owner=owner))


def test_a_native_sidecar_comes_after_the_network_set_up_and_before_the_pods_own_init_containers() -> None:
    document = pod(labels={"app": "web"}, annotations={"a/b": "c"})
    document["spec"]["initContainers"] = [{"name": "own", "image": "y"}]
    document["spec"]["volumes"] = [{"name": "own"}]
    result = injected(document)
    assert [c["name"] for c in result["spec"]["initContainers"]] == ["linkerd-init", "linkerd-proxy", "own"]
    assert result["spec"]["initContainers"][1]["restartPolicy"] == "Always"
    assert [c["name"] for c in result["spec"]["containers"]] == ["app"]
    assert len(result["spec"]["volumes"]) == 3
    assert result["metadata"]["labels"]["app"] == "web"
    assert result["metadata"]["annotations"]["a/b"] == "c"


def test_the_older_layout_has_the_proxy_among_the_containers() -> None:
    result = injected(pod(), native=False)
    assert [c["name"] for c in result["spec"]["initContainers"]] == ["linkerd-init"]
    assert [c["name"] for c in result["spec"]["containers"]] == ["app", "linkerd-proxy"]
    assert "restartPolicy" not in result["spec"]["containers"][1]


def test_labels_and_annotations_tell_mesh_owner_and_roots() -> None:
    result = injected(pod(), owner=("StatefulSet", "db"))
    assert result["metadata"]["labels"] == {
        "linkerd.io/control-plane-ns": "linkerd",
        "linkerd.io/workload-ns": "shop",
        "linkerd.io/proxy-statefulset": "db",
    }
    assert result["metadata"]["annotations"] == {
        "linkerd.io/created-by": "linkerd/proxy-injector edge-26.8.3",
        "linkerd.io/inject": "enabled",
        "linkerd.io/proxy-version": "edge-26.8.3",
        "linkerd.io/trust-root-sha256": hashlib.sha256(PEM.encode()).hexdigest(),
    }


def test_owners_that_linkerd_does_not_know_get_no_label() -> None:
    labels = injected(pod(), owner=("Rollout", "web"))["metadata"]["labels"]
    assert not [label for label in labels if label.startswith("linkerd.io/proxy-")]


@pytest.mark.parametrize(
    ("annotation", "namespace", "extra", "reason"),
    [
        (None, "enabled", {}, ""),
        ("enabled", None, {}, ""),
        (None, None, {}, "injection_enable_annotation_absent"),
        ("disabled", "enabled", {}, "injection_disable_annotation_present"),
        (None, "enabled", {"hostNetwork": True}, "host_network"),
        (None, "enabled", {"initContainers": [{"name": "linkerd-proxy"}]}, "sidecar_already_exists"),
        (None, "enabled", {"containers": [{"name": "linkerd-proxy"}]}, "sidecar_already_exists"),
    ],
)
def test_which_pods_are_left_alone(annotation: str | None, namespace: str | None, extra: JSON, reason: str) -> None:
    document = pod(annotations={inject.INJECT: annotation} if annotation else {})
    document["spec"] |= extra
    assert inject.skip_reason(document, {inject.INJECT: namespace} if namespace else {}) == reason


def test_the_injector_reads_its_configuration_from_linkerd_config() -> None:
    options = manifests.Options(native_sidecar=False, trust_domain="example.org")
    values = "linkerdVersion: stable-2.14.10\nidentityTrustDomain: example.org\nproxy:\n  nativeSidecar: false\n"
    config = inject.config_from_values(values, "linkerd")
    assert (config.version, config.trust_domain, config.native) == ("stable-2.14.10", "example.org", False)
    assert config.min_refresh == ""
    assert options.sidecar.identity_of("web", "shop") == "web.shop.serviceaccount.identity.linkerd.example.org"


@pytest.mark.parametrize(
    ("version", "minor"),
    [("stable-2.14.10", 14), ("2.18", 18), ("edge-24.8.2", 16), ("edge-25.4.4", 18), ("edge-26.8.3", 20)],
)
def test_versions_are_told_apart(version: str, minor: int) -> None:
    assert minor_version(version) == minor


def test_go_durations_and_flags() -> None:
    assert parse_duration("24h0m0s").total_seconds() == 86400
    assert parse_duration("1.5s").total_seconds() == 1.5
    assert (format_duration(86400), format_duration(24), format_duration(90)) == ("24h0m0s", "24s", "1m30s")
    with pytest.raises(ValueError, match="missing unit in duration"):
        parse_duration("24")
    assert parse_flags(["identity", "-a=b", "--c=d=e", "-f"]) == {"a": "b", "c": "d=e", "f": "true"}


def test_the_wire_format_round_trips_and_refuses_what_is_cut_off() -> None:
    request = CertifyRequest("web.shop", b"token" * 100, bytes(range(256)))
    assert CertifyRequest.decode(request.encode()) == request
    with pytest.raises(WireError):
        CertifyRequest.decode(request.encode()[:-1])
    assert CertifyRequest.decode(b"") == CertifyRequest()
