"""How an installation is recognised: flags, schemes, owners, proxies."""

from __future__ import annotations

import pytest

from capstan.errors import InvalidInput
from capstan.systems.linkerd.layout import (
    DEFAULT_LIFETIME,
    Layout,
    Scheme,
    Tool,
    _flags,
    _seconds,
    _seconds_or,
    owner_of,
)
from capstan.systems.linkerd.pods import (
    admin_port,
    has_ended,
    literal_anchors,
    local_name,
    proxy_container,
    proxy_runs,
    role_of,
)
from capstan.trust.observation import Role


def marked(labels=None, annotations=None, **more):
    return {"metadata": {"name": "x", "namespace": "linkerd", "labels": labels, "annotations": annotations, **more}}


@pytest.mark.parametrize(
    ("item", "tool"),
    [
        (marked(), Tool.PLAIN),
        (marked({"trust.cert-manager.io/bundle": "linkerd-identity-trust-roots"}), Tool.TRUST_MANAGER),
        (marked({"trust-manager.io/bundle": "x"}), Tool.TRUST_MANAGER),
        (marked(ownerReferences=[{"kind": "Bundle", "name": "x"}]), Tool.TRUST_MANAGER),
        (marked(managedFields=[{"manager": "trust-manager"}]), Tool.TRUST_MANAGER),
        (marked(annotations={"cert-manager.io/certificate-name": "linkerd-identity-issuer"}), Tool.CERT_MANAGER),
        (marked(annotations={"argocd.argoproj.io/tracking-id": "linkerd:/ConfigMap:x"}), Tool.ARGO),
        (marked({"helm.toolkit.fluxcd.io/name": "linkerd"}), Tool.FLUX),
        (marked({"kustomize.toolkit.fluxcd.io/name": "linkerd"}), Tool.FLUX),
        (marked(annotations={"meta.helm.sh/release-name": "linkerd-control-plane"}), Tool.HELM),
        # Flux installs through Helm: both marks are there, and Flux is the one that reverts at once.
        (
            marked({"helm.toolkit.fluxcd.io/name": "linkerd"}, {"meta.helm.sh/release-name": "linkerd"}),
            Tool.FLUX,
        ),
        (marked({"app.kubernetes.io/instance": "mesh"}, managedFields=[{"manager": "argocd-controller"}]), Tool.ARGO),
        (
            marked(
                {"app.kubernetes.io/instance": "mesh"}, managedFields=[{"manager": "argocd-application-controller"}]
            ),
            Tool.ARGO,
        ),
        (marked(ownerReferences=[{"kind": "ExternalSecret", "name": "x", "controller": True}]), Tool.EXTERNAL_SECRETS),
        (marked({"reconcile.external-secrets.io/managed": "true"}), Tool.EXTERNAL_SECRETS),
        (marked(ownerReferences=[{"kind": "SealedSecret", "name": "x", "controller": True}]), Tool.SEALED_SECRETS),
        (marked(ownerReferences=[{"kind": "VaultPKISecret", "name": "x"}]), Tool.VAULT_OPERATOR),
        (marked(ownerReferences=[{"kind": "MeshInstallation", "name": "x", "controller": True}]), Tool.CONTROLLER),
        (marked(ownerReferences=[{"kind": "Namespace", "name": "x"}]), Tool.PLAIN),
    ],
)
def test_the_tool_that_manages_an_object_is_known_by_its_marks(item, tool):
    assert owner_of(item) is tool
    assert tool.reverts is (tool is not Tool.PLAIN)


def test_a_cli_install_is_ours_to_write():
    assert owner_of(marked(), cli_install=True) is Tool.CLI
    assert not Tool.CLI.reverts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h0m0s", 86400.0), ("20s", 20.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5h", 5400.0), ("0", 0.0)],
)
def test_go_durations_are_read_as_go_reads_them(text, seconds):
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "1d", "1h x"])
def test_what_go_refuses_as_a_duration_is_refused(text):
    with pytest.raises(InvalidInput):
        _seconds(text)


@pytest.mark.parametrize(("text", "seconds"), [("12h", 43200.0), ("", 86400.0), ("1d", 86400.0)])
def test_a_lifetime_that_identity_cannot_read_is_the_one_that_it_takes_instead(text, seconds):
    assert _seconds_or(text, DEFAULT_LIFETIME) == seconds


def test_flags_are_read_in_all_three_forms_and_from_the_identity_container_only():
    deployment = {
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "linkerd-proxy", "args": ["-identity-scheme=wrong"]},
                        {
                            "name": "identity",
                            "args": ["identity", "-a=1", "--b=2", "-c", "3", "-enable-pprof=false", "-last"],
                        },
                    ]
                }
            }
        }
    }
    assert _flags(deployment) == {"a": "1", "b": "2", "c": "3", "enable-pprof": "false", "last": ""}


def test_a_leaf_lives_for_its_lifetime_and_the_skew_on_both_ends():
    layout = Layout("linkerd", Scheme.LINKERD, 86400.0, 20.0, "cluster.local", "", external_ca=False)
    assert layout.leaf_lifetime == 86440.0
    assert layout.identity_name == "identity.linkerd.cluster.local"


@pytest.mark.parametrize("group", ["initContainers", "containers"])
def test_the_proxy_is_found_as_native_sidecar_and_as_plain_container(group):
    pod = {
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"containers": [{"name": "app"}], group: [{"name": "app"}, {"name": "linkerd-proxy"}]},
        "status": {f"{group[:-1]}Statuses": [{"name": "linkerd-proxy", "state": {"running": {}}}]},
    }
    assert proxy_container(pod["spec"]) == {"name": "linkerd-proxy"}
    assert proxy_runs(pod)


def test_a_proxy_that_waits_or_ended_does_not_run():
    for state in ({"waiting": {}}, {"terminated": {}}, {}):
        assert not proxy_runs({"status": {"initContainerStatuses": [{"name": "linkerd-proxy", "state": state}]}})


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_ended_pods_are_no_peers(phase):
    assert has_ended({"status": {"phase": phase}})
    assert not has_ended({"status": {"phase": "Running"}})
    assert not has_ended({"status": {"phase": "Pending"}})


PROXY = {
    "name": "linkerd-proxy",
    "ports": [{"name": "linkerd-proxy", "containerPort": 4143}, {"name": "linkerd-admin", "containerPort": 14191}],
    "env": [
        {"name": "_pod_ns", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "_pod_sa", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
        {"name": "PRICE", "value": "$$(free) $(UNKNOWN)"},
        {
            "name": "LINKERD2_PROXY_IDENTITY_LOCAL_NAME",
            "value": "$(_pod_sa).$(_pod_ns).serviceaccount.identity.linkerd.cluster.local",
        },
        {"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": "PEM"},
    ],
}


def test_a_proxys_identity_is_expanded_as_the_kubelet_does():
    pod = {"metadata": {"name": "web-1", "namespace": "shop"}, "spec": {"serviceAccountName": "web"}}
    assert local_name(pod, PROXY) == "web.shop.serviceaccount.identity.linkerd.cluster.local"


def test_the_admin_port_is_found_by_its_name():
    assert admin_port(PROXY) == 14191
    assert admin_port({"name": "linkerd-proxy"}) == 4191


def test_roots_by_reference_are_not_written_into_the_pod():
    assert literal_anchors(PROXY) == "PEM"
    reference = {"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "valueFrom": {"configMapKeyRef": {"name": "x"}}}
    assert literal_anchors({"env": [reference]}) is None


@pytest.mark.parametrize(
    ("namespace", "component", "role"),
    [
        ("linkerd", "identity", Role.CONTROL_PLANE),
        ("linkerd", "proxy-injector", Role.CONTROL_PLANE),
        ("linkerd", "heartbeat", Role.WORKLOAD),
        ("shop", "identity", Role.WORKLOAD),
    ],
)
def test_the_control_plane_is_its_components_in_its_own_namespace(namespace, component, role):
    labels = {"linkerd.io/control-plane-component": component}
    assert role_of({"metadata": {"namespace": namespace, "labels": labels}}, "linkerd") is role
