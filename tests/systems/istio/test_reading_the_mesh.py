"""A whole Istio is read through a real Kubernetes API, port-forwards and the answers of its processes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.cluster.resources import (
    CONFIG_MAPS,
    MUTATING_WEBHOOKS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    VALIDATING_WEBHOOKS,
)
from capstan.errors import InvalidInput, NotFound
from capstan.systems.istio.layout import read_layout
from capstan.systems.istio.observe import View, observe
from capstan.systems.istio.secrets_dump import read_serials
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.versions import Version
from capstan.trust.observation import Role
from tests.support.istio_mesh import SYSTEM, IstioMesh, istiod_template, sidecar_spec
from tests.support.mesh import envoy, intermediate, leaf, pem, root, secrets_dump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

ACTIVE = "/config_dump?resource=dynamic_active_secrets"


@pytest.fixture
def mesh(fresh_api: Running, cluster: Cluster) -> Iterator[IstioMesh]:
    mesh = IstioMesh(fresh_api, cluster)
    yield mesh
    mesh.close()


_KIND = b'{"configs": [{"@type": "x.SecretsConfigDump.DynamicSecret", "name": "default", "secret": %s}]}'
ODD = (b'{"configs": [1]}', _KIND % b"[1]", _KIND % b'{"tls_certificate": 1}', _KIND % b'{"tls_certificate": [1]}')


def look(mesh: IstioMesh, **options) -> View:
    return observe(mesh.cluster, SYSTEM, mesh.source, timeout=3, **options)


def peers(view: View):
    return {f"{item.peer.namespace}/{item.peer.pod}": item.peer for item in view.proxies}


def test_a_mesh_in_order_is_read_whole(mesh):
    view = look(mesh.standard())
    old, issuer = mesh.old.certificate.fingerprint, mesh.issuer.certificate.fingerprint
    seen = view.observation
    assert view.troubles == ()
    assert view.layout.mode is Mode.PLUG_IN
    assert seen.bundle == {old}
    assert seen.roots_with_leaf
    assert seen.issuer.fingerprint == issuer
    assert seen.issuer.anchors == {old}
    assert [(item.name, item.issuer, item.roots, item.unreadable) for item in seen.signers] == [
        (f"pod {SYSTEM}/istiod-abc-{index}", issuer, {old}, "") for index in (0, 1)
    ]
    assert set(peers(view)) == {"shop/web-1", "shop/cart-1", f"{SYSTEM}/gateway-1"}
    for peer in seen.peers:
        assert (peer.trusts, peer.leaf.issuer, peer.leaf.anchors, peer.unreadable) == ({old}, issuer, {old}, "")
        assert peer.ready
    assert {item.kind for item in view.proxies} == {"sidecar", "gateway"}
    assert dict(seen.declared) == {
        "configmaps istio-ca-root-cert": {old},
        "mutatingwebhookconfiguration/istio-sidecar-injector": {old},
        f"validatingwebhookconfiguration/istio-validator-{SYSTEM}": {old},
    }
    assert seen.leaf_lifetime == timedelta(hours=24).total_seconds()


def test_each_istiod_is_asked_by_itself(mesh):
    mesh.standard()
    late = mesh.signers["istiod-abc-1"]
    late.issuer, late.chain = (other := intermediate("Intermediate 2", mesh.new)), pem(other, mesh.new)
    late.roots = pem(mesh.old, mesh.new)
    first, second = look(mesh).observation.signers
    assert (first.issuer, first.roots) == (mesh.issuer.certificate.fingerprint, {mesh.old.certificate.fingerprint})
    assert second.issuer == other.certificate.fingerprint
    assert second.anchors == {mesh.new.certificate.fingerprint}
    assert second.roots == {mesh.old.certificate.fingerprint, mesh.new.certificate.fingerprint}


def asked_as(mesh: IstioMesh) -> dict:
    """The claims of the token that the first istiod was last shown."""
    payload = mesh.signers["istiod-abc-0"].tokens[-1].removeprefix("Bearer ").split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def test_istiods_are_asked_as_capstans_own_service_account_for_the_audience_they_expect(mesh):
    look(mesh.standard())
    claims = asked_as(mesh)
    assert claims["sub"] == "system:serviceaccount:capstan-system:capstan"
    assert claims["aud"] == ["istio-ca"]


def test_without_that_account_the_namespaces_own_is_used_then_that_of_the_control_planes_namespace(mesh):
    mesh.standard()
    mesh.cluster.delete(SERVICE_ACCOUNTS, "capstan", "capstan-system")
    assert all(item.signer.roots for item in look(mesh).istiods)
    assert asked_as(mesh)["sub"] == "system:serviceaccount:capstan-system:default"
    mesh.cluster.delete(SERVICE_ACCOUNTS, "default", "capstan-system")
    assert all(item.signer.roots for item in look(mesh).istiods)
    assert asked_as(mesh)["sub"] == f"system:serviceaccount:{SYSTEM}:default"


def test_without_any_account_the_serving_certificate_tells_the_issuer_and_the_roots_stay_unknown(mesh):
    mesh.standard()
    for name, namespace in (("capstan", "capstan-system"), ("default", "capstan-system"), ("default", SYSTEM)):
        mesh.cluster.delete(SERVICE_ACCOUNTS, name, namespace)
    for istiod in look(mesh).istiods:
        assert istiod.signer.issuer == mesh.issuer.certificate.fingerprint
        assert istiod.signer.roots is None
        assert "service account capstan-system/capstan" in istiod.signer.unreadable


def test_an_istiod_that_does_not_answer_is_unreadable(mesh):
    mesh.standard()
    owner = mesh.cluster.get(PODS, "istiod-abc-0", SYSTEM)["metadata"]["ownerReferences"][0]
    labels = {"app": "istiod", "istio.io/rev": "default"}
    spec = istiod_template(labels, {}, "1.30.1")["spec"]
    mesh.mesh.pod(SYSTEM, "istiod-abc-9", spec, labels={**labels, "pod-template-hash": "abc"}, owner=owner)
    signer = next(item.signer for item in look(mesh).istiods if item.ref.name == "istiod-abc-9")
    assert signer.issuer is None
    assert signer.roots is None
    assert "cannot reach port 15012" in signer.unreadable


def test_roots_are_all_certificates_of_a_proxys_bundle_and_a_repeated_one_counts_once(mesh):
    mesh.standard()
    mesh.proxy("shop", "both", roots=pem(mesh.old, mesh.new, mesh.new))
    peer = peers(look(mesh))["shop/both"]
    assert peer.trusts == {mesh.old.certificate.fingerprint, mesh.new.certificate.fingerprint}


def test_a_leaf_of_a_root_that_only_another_proxy_holds_is_recognised(mesh):
    mesh.standard()
    other = intermediate("Intermediate 2", mesh.new)
    mesh.proxy("shop", "ahead", chain=mesh.leaf_chain(other, mesh.new), roots=pem(mesh.old, mesh.new))
    peer = peers(look(mesh))["shop/ahead"]
    assert peer.leaf.issuer == other.certificate.fingerprint
    assert peer.leaf.anchors == {mesh.new.certificate.fingerprint}


def test_known_certificates_are_recognised_before_anybody_holds_them(mesh):
    mesh.standard()
    view = look(mesh, known=[mesh.new.certificate])
    assert mesh.new.certificate.fingerprint in view.certificates


def test_a_proxy_whose_secrets_are_still_warming_is_unreadable_with_that_reason(mesh):
    mesh.standard()
    warming = json.dumps(secrets_dump(mesh.leaf_chain(), pem(mesh.old))).encode()
    answers = {ACTIVE: (200, b"{}"), "/config_dump?resource=dynamic_warming_secrets": (200, warming)}
    mesh.proxy("shop", "warming", answers=answers)
    peer = peers(look(mesh))["shop/warming"]
    assert peer.trusts is None
    assert peer.leaf is None
    assert "still warming" in peer.unreadable


def test_a_proxy_without_secrets_is_unreadable_with_that_reason(mesh):
    mesh.standard()
    mesh.proxy("shop", "empty", chain="", roots="")
    assert "not in its config dump" in peers(look(mesh))["shop/empty"].unreadable


def test_an_envoy_that_does_not_know_the_filter_is_read_from_its_whole_dump(mesh):
    mesh.standard()
    entries = secrets_dump(mesh.leaf_chain(), pem(mesh.old))["configs"]
    bootstrap = {"@type": "type.googleapis.com/envoy.admin.v2alpha.BootstrapConfigDump"}
    kind = "type.googleapis.com/envoy.admin.v2alpha.SecretsConfigDump"
    whole = json.dumps({"configs": [bootstrap, {"@type": kind, "dynamic_active_secrets": entries}]}).encode()
    mesh.proxy("shop", "ignores", answers={ACTIVE: (200, whole)})
    mesh.proxy("shop", "refuses", answers={"/config_dump": (200, whole)})
    huge = whole[:-1] + b', "filler": "' + b"x" * (4 << 20) + b'"}'
    mesh.proxy("shop", "long", answers={ACTIVE: (200, huge), "/config_dump": (200, huge)})
    found = peers(look(mesh))
    for name in ("ignores", "refuses", "long"):
        assert found[f"shop/{name}"].unreadable == ""
        assert found[f"shop/{name}"].trusts == {mesh.old.certificate.fingerprint}


def test_an_envoy_that_names_a_file_has_not_said_what_it_holds(mesh):
    mesh.standard()
    dump = secrets_dump(mesh.leaf_chain(), pem(mesh.old))
    dump["configs"][1]["secret"]["validation_context"] = {"trusted_ca": {"filename": "/etc/certs/root-cert.pem"}}
    mesh.proxy("shop", "files", answers={ACTIVE: (200, json.dumps(dump).encode())})
    peer = peers(look(mesh))["shop/files"]
    assert peer.leaf is not None
    assert peer.trusts is None
    assert "/etc/certs/root-cert.pem" in peer.unreadable


@pytest.mark.parametrize(
    "answer", [(500, b"no"), (200, b"no json"), (200, b"[]"), (200, b'{"configs": 1}'), *((200, odd) for odd in ODD)]
)
def test_an_answer_that_is_no_dump_is_unreadable(mesh, answer):
    mesh.standard()
    mesh.proxy("shop", "odd", answers={ACTIVE: answer, "/config_dump": answer})
    peer = peers(look(mesh))["shop/odd"]
    assert peer.unreadable
    assert peer.trusts is None


def test_a_proxy_that_does_not_listen_is_unreadable(mesh):
    mesh.standard()
    mesh.mesh.pod("shop", "deaf", sidecar_spec())
    assert "cannot reach port 15000" in peers(look(mesh))["shop/deaf"].unreadable


def test_a_proxy_with_an_admin_port_of_its_own_is_asked_there(mesh):
    mesh.standard()
    env = {"PROXY_CONFIG": json.dumps({"proxyAdminPort": 15999, "proxyMetadata": {"PROXY_CONFIG_XDS_AGENT": "true"}})}
    address = mesh.mesh.pod("shop", "own-port", sidecar_spec(env=env))
    mesh.mesh.ports.http(address, 15999, envoy(mesh.leaf_chain(), pem(mesh.old)))
    view = look(mesh)
    assert peers(view)["shop/own-port"].unreadable == ""
    assert next(item.env for item in view.proxies if item.peer.pod == "own-port")["PROXY_CONFIG_XDS_AGENT"] == "true"


def test_proxyless_grpc_is_said_to_be_unreadable(mesh):
    mesh.standard()
    mesh.mesh.pod("shop", "grpc", sidecar_spec(), annotations={"inject.istio.io/templates": "grpc-agent"})
    assert "proxyless" in peers(look(mesh))["shop/grpc"].unreadable


def test_pods_whose_proxy_does_not_run_are_no_peers(mesh):
    mesh.standard()
    mesh.mesh.pod("shop", "pending", sidecar_spec(), running=False)
    mesh.mesh.pod("shop", "done", sidecar_spec())
    mesh.cluster.patch(PODS, "done", {"status": {"phase": "Succeeded"}}, "shop", subresource="status")
    assert not {"shop/pending", "shop/done"} & set(peers(look(mesh)))


def test_who_is_connected_and_is_no_pod_of_the_cluster_is_an_unreadable_peer(mesh):
    mesh.standard()
    mesh.connected += ["vm-7.legacy", "debug"]
    peer = peers(look(mesh))["legacy/vm-7"]
    assert peer.trusts is None
    assert "virtual machine" in peer.unreadable
    assert len(look(mesh).proxies) == 4


def test_a_connection_of_a_pod_that_has_gone_by_the_second_look_is_forgotten(mesh):
    mesh.standard()
    asked = []

    def debug(path):
        asked.append(path)
        mesh.connected = ["gone-1.shop"] if len(asked) <= len(mesh.signers) else []
        return mesh.told(path)

    mesh.debug = debug
    assert "shop/gone-1" not in peers(look(mesh))
    assert len(asked) == 2 * len(mesh.signers)


def test_a_connected_pod_without_a_proxy_of_istios_is_unreadable_with_that_reason(mesh):
    mesh.standard()
    mesh.mesh.pod("shop", "agent-1", {"containers": [{"name": "agentgateway", "image": "agentgateway:1"}]})
    mesh.connected.append("agent-1.shop")
    mesh.connected.append("vm-1.shop")
    found = peers(look(mesh))
    assert "no container istio-proxy" in found["shop/agent-1"].unreadable
    assert "no pod of this cluster" in found["shop/vm-1"].unreadable


def test_a_pod_that_was_born_after_the_list_is_read_too(mesh):
    mesh.standard()

    def debug(path):
        if ("shop", "born") not in mesh.admin:
            mesh.admin["shop", "born"] = {}
            mesh.proxy("shop", "born")
        return mesh.told(path)

    mesh.debug = debug
    assert peers(look(mesh))["shop/born"].unreadable == ""


def test_an_istiod_that_does_not_say_who_is_connected_is_a_trouble(mesh):
    mesh.standard()
    mesh.debug = lambda _path: (401, b"")
    troubles = look(mesh).troubles
    assert len(troubles) == 2
    assert all("HTTP 401" in trouble for trouble in troubles)


def test_a_configmap_that_differs_is_named_and_the_others_are_one_entry(mesh):
    mesh.standard()
    other = {"data": {"root-cert.pem": pem(mesh.old, mesh.new)}}
    mesh.cluster.patch(CONFIG_MAPS, "istio-ca-root-cert", other, "shop")
    declared = dict(look(mesh).observation.declared)
    both = {mesh.old.certificate.fingerprint, mesh.new.certificate.fingerprint}
    assert declared["configmaps istio-ca-root-cert"] == {mesh.old.certificate.fingerprint}
    assert declared["configmap shop/istio-ca-root-cert"] == both


def test_a_configmap_that_cannot_be_read_declares_nothing(mesh):
    mesh.standard()
    mesh.cluster.patch(CONFIG_MAPS, "istio-ca-root-cert", {"data": {"root-cert.pem": "no pem"}}, "shop")
    assert dict(look(mesh).observation.declared)["configmap shop/istio-ca-root-cert"] == frozenset()


def test_a_webhook_whose_entries_differ_declares_nothing(mesh):
    mesh.standard()
    name = "istio-sidecar-injector"
    item = mesh.cluster.get(MUTATING_WEBHOOKS, name)
    item["webhooks"][1]["clientConfig"]["caBundle"] = base64.b64encode(pem(mesh.new).encode()).decode()
    mesh.cluster.replace(MUTATING_WEBHOOKS, item)
    assert dict(look(mesh).observation.declared)[f"mutatingwebhookconfiguration/{name}"] == frozenset()


def test_a_webhook_of_a_revision_without_istiod_holds_nobody_up_and_is_told(mesh):
    mesh.standard()
    mesh.webhooks("asm-1-29", pem(mesh.new))
    view = look(mesh)
    assert not [name for name, _ in view.observation.declared if "asm-1-29" in name]
    assert len(view.places.abandoned) == 2
    assert all("asm-1-29" in told for told in view.places.abandoned)
    assert view.troubles == ()


def test_a_webhook_that_calls_a_live_istiod_and_that_nobody_keeps_is_a_trouble(mesh):
    mesh.standard()
    labels = {"metadata": {"labels": {"istio.io/rev": "asm-1-29"}}}
    mesh.cluster.patch(VALIDATING_WEBHOOKS, f"istio-validator-{SYSTEM}", labels)
    (trouble,) = look(mesh).troubles
    assert "asm-1-29" in trouble
    assert "calls istiod" in trouble


def test_webhooks_of_others_are_none_of_the_mesh(mesh):
    mesh.standard()
    item = mesh.cluster.get(MUTATING_WEBHOOKS, "istio-sidecar-injector")
    item["metadata"] = {"name": "somebody-elses"}
    for hook in item["webhooks"]:
        hook["clientConfig"] = {"service": {"name": "istiod", "namespace": "elsewhere"}, "caBundle": ""}
    mesh.cluster.create(
        MUTATING_WEBHOOKS,
        {**item, "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"},
    )
    assert not [name for name, _ in look(mesh).observation.declared if "somebody" in name]


def test_every_revision_is_read_during_a_canary_upgrade(mesh):
    mesh.standard()
    mesh.control_plane(revision="asm-1-31", version="1.31.0", replicas=1)
    mesh.webhooks("asm-1-31", pem(mesh.old))
    view = look(mesh)
    assert [item.name for item in view.layout.revisions] == ["asm-1-31", "default"]
    assert {item.revision: item.version for item in view.istiods} == {
        "default": Version(1, 30, 1), "asm-1-31": Version(1, 31, 0)
    }  # fmt: skip
    assert "mutatingwebhookconfiguration/istio-sidecar-injector-asm-1-31" in dict(view.observation.declared)


def test_without_a_source_the_roots_are_those_istiod_published(mesh):
    mesh.standard()
    mesh.source = None
    view = look(mesh)
    assert view.files is None
    assert view.issuer is None
    assert view.observation.bundle == {mesh.old.certificate.fingerprint}
    assert view.observation.issuer is None


def test_a_signing_ca_that_cannot_be_read_is_a_trouble(mesh):
    mesh.standard()
    files = mesh.source.files
    mesh.source.files = CaFiles(files.root_cert, "no pem", files.cert_chain, "2")
    view = look(mesh)
    assert view.issuer is None
    assert any("ca-cert.pem" in trouble for trouble in view.troubles)


def ztunnel_dump(mesh: IstioMesh, *entries: dict) -> bytes:
    return json.dumps({"workloads": [], "certificates": list(entries)}).encode()


def certs(*certificates) -> list[dict[str, str]]:
    return [{"pem": base64.b64encode(pem(item).encode()).decode()} for item in certificates]


def add_ztunnel(mesh: IstioMesh, answer: tuple[int, bytes], name: str = "ztunnel-x") -> None:
    container = {"name": "istio-proxy", "image": "docker.io/istio/ztunnel:1.30.1", "args": ["proxy", "ztunnel"]}
    address = mesh.mesh.pod(SYSTEM, name, {"containers": [container]}, labels={"app": "ztunnel"})
    mesh.mesh.ports.http(address, 15000, {"/config_dump": answer})


def test_a_ztunnel_is_a_peer_per_certificate(mesh):
    mesh.standard()
    identity = "spiffe://cluster.local/ns/shop/sa/{}"
    web, api = (leaf(mesh.issuer, identity.format(name)) for name in ("web", "api"))
    ok = {"state": "Available", "certChain": certs(web, mesh.issuer), "rootCerts": certs(mesh.old, mesh.new)}
    snake = {
        "state": "Available",
        "ca_cert": certs(api),
        "cert_chain": certs(mesh.issuer),
        "root_certs": certs(mesh.old),
    }
    older = {"state": "Available", "ca_cert": certs(api), "cert_chain": certs(mesh.issuer)}
    entries = [
        {"identity": identity.format("web"), **ok},
        {"identity": identity.format("api"), **snake},
        {"identity": identity.format("older"), **older},
        {"identity": identity.format("down"), "state": "Unavailable: signing gRPC error", "certChain": []},
        {"identity": identity.format("new"), "state": "Initializing"},
    ]
    add_ztunnel(mesh, (200, ztunnel_dump(mesh, *entries)))
    found = {name.removeprefix(f"{SYSTEM}/"): peer for name, peer in peers(look(mesh)).items() if "ztunnel" in name}
    assert set(found) == {f"ztunnel-x[shop/{name}]" for name in ("web", "api", "older", "down", "new")}
    assert found["ztunnel-x[shop/web]"].trusts == {mesh.old.certificate.fingerprint, mesh.new.certificate.fingerprint}
    for name in ("web", "api", "older"):
        assert found[f"ztunnel-x[shop/{name}]"].leaf.issuer == mesh.issuer.certificate.fingerprint
    assert found["ztunnel-x[shop/api]"].unreadable == ""
    assert "does not say" in found["ztunnel-x[shop/older]"].unreadable
    assert "signing gRPC error" in found["ztunnel-x[shop/down]"].unreadable
    assert found["ztunnel-x[shop/down]"].trusts is None
    assert "Initializing" in found["ztunnel-x[shop/new]"].unreadable


@pytest.mark.parametrize("answer", [(404, b""), (200, b"{}"), (200, b"no json"), (200, b'{"certificates": [1]}')])
def test_a_ztunnel_that_does_not_say_what_it_holds_is_one_unreadable_peer(mesh, answer):
    mesh.standard()
    add_ztunnel(mesh, answer)
    peer = peers(look(mesh))[f"{SYSTEM}/ztunnel-x"]
    assert peer.unreadable
    assert peer.trusts is None


def test_a_proxy_of_the_citadel_era_is_read_from_its_files_if_they_are_what_it_loaded(mesh, cluster):
    mesh.standard()
    own, late = leaf(mesh.old), leaf(mesh.old)
    volume = {"name": "istio-certs", "secret": {"secretName": "istio.default", "optional": True}}
    spec = sidecar_spec(version="1.3.5") | {"volumes": [volume]}
    data = {"cert-chain.pem": pem(own), "root-cert.pem": pem(mesh.old), "key.pem": "not read"}
    body = {
        "apiVersion": "v1", "kind": "Secret", "type": "istio.io/key-and-cert",
        "metadata": {"name": "istio.default", "namespace": "shop"},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }  # fmt: skip
    cluster.create(SECRETS, body)

    def listed(item, anchor) -> dict[str, tuple[int, bytes]]:
        entry = {
            "ca_cert": [{"path": "/etc/certs/root-cert.pem", "serial_number": f"{anchor.serial_number:x}"}],
            "cert_chain": [{"path": "/etc/certs/cert-chain.pem", "serial_number": f"{item.serial_number:x}"}],
        }
        return {"/certs": (200, json.dumps({"certificates": [entry]}).encode())}

    mesh.proxy("shop", "loaded", spec=spec, answers=listed(own, mesh.old.certificate))
    mesh.proxy("shop", "behind", spec=spec, answers=listed(late, mesh.old.certificate))
    mesh.proxy("shop", "mixed", spec=spec, answers=listed(own, mesh.new.certificate))
    found = peers(look(mesh))
    assert found["shop/loaded"].trusts == {mesh.old.certificate.fingerprint}
    assert found["shop/loaded"].leaf.fingerprint == own.fingerprint
    assert "has not loaded" in found["shop/behind"].unreadable
    assert found["shop/behind"].leaf is None
    assert found["shop/mixed"].trusts is None


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"certificates": [1]}', b'{"certificates": [{"ca_cert": [{}]}]}'])
def test_a_list_of_certificates_of_another_shape_is_refused(answer):
    with pytest.raises(InvalidInput):
        read_serials(answer)


def test_a_namespace_without_a_control_plane_is_told(mesh, cluster):
    mesh.mesh.namespace("empty")
    with pytest.raises(NotFound) as caught:
        read_layout(cluster, "empty")
    assert "no Istio control plane" in caught.value.what


@pytest.mark.parametrize("env", [{"ENABLE_CA_SERVER": "false"}, {"EXTERNAL_CA": "ISTIOD_RA_KUBERNETES_API"}])
def test_an_istiod_that_is_not_the_ca_is_not_ours_to_rotate(mesh, cluster, env):
    template = istiod_template({"app": "istiod"}, env, "1.30.1")
    mesh.mesh.deployment(SYSTEM, "istiod", template)
    with pytest.raises(InvalidInput) as caught:
        read_layout(cluster, SYSTEM)
    assert "not the CA" in caught.value.what


def test_a_ca_by_csi_volume_is_the_key_vaults(mesh, cluster):
    template = istiod_template({"app": "istiod", "istio.io/rev": "asm-1-30"}, {}, "1.30.1")
    attributes = {"secretProviderClass": "istio-spc"}
    csi = {"driver": "secrets-store.csi.k8s.io", "readOnly": True, "volumeAttributes": attributes}
    template["spec"]["volumes"] = [{"name": "cacerts", "csi": csi}]
    mesh.mesh.deployment("aks-istio-system", "istiod-asm-1-30", template)
    layout = read_layout(cluster, "aks-istio-system")
    assert layout.mode is Mode.KEY_VAULT
    assert layout.ca_secret == ""
    assert layout.revisions[0].ca_volume.name == "istio-spc"
    assert layout.revisions[0].name == "asm-1-30"


def test_an_istiod_without_plug_in_files_is_self_signed(mesh, cluster):
    mesh.control_plane(replicas=1)
    layout = read_layout(cluster, SYSTEM)
    assert layout.mode is Mode.SELF_SIGNED
    assert layout.ca_secret == "istio-ca-secret"


def test_a_self_signed_ca_that_istiod_keeps_in_cacerts_is_still_self_signed(mesh, cluster):
    mesh.cacerts({"ca-cert.pem": "x", "ca-key.pem": "y", "istio-generated": ""})
    mesh.control_plane(replicas=1)
    layout = read_layout(cluster, SYSTEM)
    assert (layout.mode, layout.ca_secret) == (Mode.SELF_SIGNED, "cacerts")


def test_citadel_is_the_ca_where_there_is_one(mesh, cluster):
    template = {
        "metadata": {"labels": {"istio": "citadel"}},
        "spec": {"containers": [{"name": "citadel", "image": "docker.io/istio/citadel:1.3.5"}]},
    }
    mesh.mesh.deployment(SYSTEM, "istio-citadel", template)
    pilot = {
        "metadata": {"labels": {"istio": "pilot"}},
        "spec": {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.3.5"}]},
    }
    mesh.mesh.deployment(SYSTEM, "istio-pilot", pilot)
    layout = read_layout(cluster, SYSTEM)
    assert layout.mode is Mode.CITADEL
    assert [item.deployment_name for item in layout.revisions] == ["istio-citadel"]


def test_the_trust_domain_is_that_of_the_mesh_configuration(mesh, cluster):
    mesh.control_plane(replicas=1)
    assert read_layout(cluster, SYSTEM).trust_domain == "cluster.local"
    metadata = {"name": "istio", "namespace": SYSTEM}
    data = {"mesh": "trustDomain: mesh.example\ndefaultConfig: {}\n"}
    cluster.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    assert read_layout(cluster, SYSTEM).trust_domain == "mesh.example"


def mesh_config(cluster, text, name="istio"):
    metadata = {"name": name, "namespace": SYSTEM}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": text}}
    cluster.create(CONFIG_MAPS, body)


def added_roots(*texts):
    return json.dumps({"caCertificates": [{"pem": text} for text in texts]})


def test_roots_that_the_mesh_configuration_adds_are_left_out_of_what_a_proxy_trusts_of_its_ca(mesh, cluster):
    # A mesh that trusts another one's root too: pushed to every proxy, and there to stay. With it among their roots no
    # proxy would ever be seen to hold the new root alone, and no rotation to end.
    other = root("another mesh's")
    mesh.standard()
    mesh.proxy("shop", "api-1", roots=pem(mesh.old, other))
    mesh_config(cluster, added_roots(pem(other), "no pem at all"))
    assert peers(look(mesh))["shop/api-1"].trusts == {mesh.old.certificate.fingerprint}


def test_a_root_that_is_to_go_is_seen_also_where_the_mesh_configuration_adds_it(mesh, cluster):
    mesh.standard()
    mesh.proxy("shop", "api-1", roots=pem(mesh.old, mesh.new))
    mesh_config(cluster, added_roots(pem(mesh.new), pem(mesh.old)))
    both = {mesh.old.certificate.fingerprint, mesh.new.certificate.fingerprint}
    view = observe(cluster, SYSTEM, mesh.source, (mesh.old.certificate, mesh.new.certificate), timeout=5)
    assert peers(view)["shop/api-1"].trusts == both


def test_what_is_added_in_the_add_ons_shared_mesh_configuration_counts_too(fresh_api, cluster):
    other = root("another mesh's")
    mesh = IstioMesh(fresh_api, cluster, env={"SHARED_MESH_CONFIG": "istio-shared-configmap-asm-1-30"})
    try:
        mesh.control_plane(revision="asm-1-30", replicas=1)
        mesh_config(cluster, "trustDomain: cluster.local\n", "istio-asm-1-30")
        mesh_config(cluster, added_roots(pem(other)), "istio-shared-configmap-asm-1-30")
        assert read_layout(cluster, SYSTEM).added_roots.fingerprints == {other.certificate.fingerprint}
    finally:
        mesh.close()


def test_a_control_planes_own_sidecar_is_a_control_plane_peer(mesh):
    mesh.standard()
    spec = sidecar_spec()
    spec["containers"].append({"name": "galley", "image": "docker.io/istio/galley:1.3.5"})
    mesh.proxy(SYSTEM, "galley-1", spec=spec)
    assert peers(look(mesh))[f"{SYSTEM}/galley-1"].role is Role.CONTROL_PLANE


def test_time_is_the_callers(mesh):
    mesh.standard()
    mesh.issuer = intermediate("not yet", mesh.old, datetime.now(UTC) + timedelta(days=2))
    files = mesh.source.files
    mesh.source.files = CaFiles(files.root_cert, pem(mesh.issuer), pem(mesh.issuer, mesh.old), "2")
    assert look(mesh).observation.issuer.anchors == frozenset()
    later = datetime.now(UTC) + timedelta(days=3)
    assert look(mesh, now=lambda: later).observation.issuer.anchors == {mesh.old.certificate.fingerprint}
