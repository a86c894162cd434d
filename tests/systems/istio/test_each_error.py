"""The errors that no other test of this folder raises: each says what, where, and what was there instead."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import DEPLOYMENTS, SECRETS
from capstan.config import ClusterRef, PluginCa, System, TrustDomain
from capstan.errors import GateRefused, InvalidCertificate, InvalidInput, InvalidPem, NotFound
from capstan.systems.istio import forms, planning
from capstan.systems.istio.adapter import Istio, open_istio
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.citadel import CitadelSource
from capstan.systems.istio.connections import read_list
from capstan.systems.istio.key_vault import KeyVaultSource, open_key_vault
from capstan.systems.istio.layout import read_layout
from capstan.systems.istio.opening import open_source, source_of
from capstan.systems.istio.owners import Tool, owner_of
from capstan.systems.istio.places import read_places
from capstan.systems.istio.pods import kind_of, revision_of
from capstan.systems.istio.preflight import try_verify, verify_files
from capstan.systems.istio.secrets_dump import read_secrets
from capstan.systems.istio.self_signed import SelfSignedSource
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.versions import image_version
from capstan.systems.istio.ztunnels import read_dump
from tests.pki.ca import NOW
from tests.support.istio_mesh import istiod_template
from tests.support.mesh import Mesh, leaf, secrets_dump
from tests.support.mesh import intermediate as below
from tests.support.mesh import pem as text
from tests.support.mesh import root as anchor
from tests.systems.istio.writing import Ca, clock, make_secret, new_namespace, pem
from tests.vaults.harness import StaticCredential

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

OLD, NEW = Ca.of("A"), Ca.of("B")
ROOT = anchor("old")
ISSUER = below("Intermediate CA", ROOT)
LEAF = leaf(ISSUER)


@pytest.fixture
def shared(api: Running) -> Iterator[Cluster]:
    connection = api.connect(sleep=lambda _seconds: None)
    yield connection
    connection.close()


@pytest.fixture
def namespace(shared: Cluster) -> str:
    return new_namespace(shared)


def layout(mode: Mode, namespace: str = "istio-system", ca_secret: str = "istio-ca-secret") -> Any:
    return SimpleNamespace(mode=mode, namespace=namespace, ca_secret=ca_secret, revisions=(), config_map="none")


# --- which source, which adapter -----------------------------------------------------------------------------------


def test_each_mode_has_its_source_and_a_key_vaults_is_not_in_the_cluster(shared: Cluster, namespace: str) -> None:
    for mode, kind in (
        (Mode.CITADEL, CitadelSource),
        (Mode.PLUG_IN, CacertsSource),
        (Mode.SELF_SIGNED, SelfSignedSource),
    ):
        assert type(source_of(shared, layout(mode, namespace), now=clock)) is kind
    with pytest.raises(NotFound, match="the CA of this istiod is not in the cluster") as caught:
        source_of(shared, layout(Mode.KEY_VAULT, namespace), now=clock)
    assert "--system aks-istio" in caught.value.next_command


def test_what_istiod_generated_into_cacerts_is_changed_there(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, {**OLD.entries(), "istio-generated": ""})
    found = source_of(shared, layout(Mode.SELF_SIGNED, namespace, "cacerts"), now=clock)
    assert type(found) is CacertsSource


@pytest.mark.parametrize("plugin_ca", [None, PluginCa()])
def test_an_add_on_whose_vault_nobody_names_is_refused(plugin_ca: PluginCa | None) -> None:
    domain = TrustDomain(name="d", system=System.AKS_ISTIO)
    reference = ClusterRef(name="east", plugin_ca=plugin_ca)
    with pytest.raises(InvalidInput, match="nothing says where the add-on's CA is kept") as caught:
        open_istio(domain, reference, SimpleNamespace(name="east"))  # type: ignore[arg-type]  # not asked for anything
    assert "az aks show" in caught.value.next_command


def test_a_vault_is_named_with_four_different_secrets(shared: Cluster) -> None:
    with pytest.raises(InvalidInput, match="nothing says where the add-on's CA is kept"):
        open_key_vault(shared, PluginCa(), now=clock, credential=StaticCredential())
    url = "https://example-vault.vault.example"
    with pytest.raises(InvalidInput, match="two of the four secrets have one name"):
        open_key_vault(shared, PluginCa(key_vault=url, ca_key="ca-cert"), now=clock, credential=StaticCredential())
    found = open_source(shared, "aks-istio-system", PluginCa(key_vault=url), now=clock)
    assert isinstance(found, KeyVaultSource)
    assert url in found.where


def test_a_probe_of_nobody_is_refused_before_anybody_is_looked_for(shared: Cluster) -> None:
    with pytest.raises(InvalidInput, match="a probe of nobody proves nothing"):
        Istio(shared).probe(b"", SimpleNamespace(), limit=0)  # type: ignore[arg-type]  # not looked at


# --- texts and keys ------------------------------------------------------------------------------------------------


def test_an_entry_that_is_no_text_is_named(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries())
    item = shared.get(SECRETS, "cacerts", namespace)
    item["data"]["root-cert.pem"] = base64.b64encode(b"\xff\xfe").decode()
    with pytest.raises(InvalidInput, match="the secret's entry is no text") as caught:
        forms.files_of(item)
    assert caught.value.where == f"secret {namespace}/cacerts root-cert.pem"


def test_a_signing_ca_without_certificate_or_with_another_key_is_no_material() -> None:
    with pytest.raises(InvalidPem, match="no certificate"):
        forms.material_of(CaFiles(pem(OLD.root.certificate), "# nothing\n", "", ""), OLD.key, "x")
    with pytest.raises(InvalidCertificate, match="the cert does not match the key") as caught:
        forms.material_of(OLD.files(), NEW.key, "x")
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("part", ["root_cert", "ca_cert", "cert_chain"])
def test_a_private_key_or_words_alone_among_the_certificates_are_refused(part: str) -> None:
    files = OLD.files()
    key = OLD.key.pem().decode()
    with pytest.raises(InvalidPem) as caught:
        verify_files(replace(files, **{part: getattr(files, part) + key}), OLD.key, "x", now=NOW)
    assert caught.value.what == "a private key stands among the certificates"
    assert key.splitlines()[1] not in str(caught.value)
    assert "no certificate" in try_verify(replace(files, **{part: "# nothing\n"}), OLD.key, "x", now=NOW)
    assert try_verify(files, OLD.key, "x", now=NOW) == ""


def test_without_a_key_nothing_can_be_planned_and_an_empty_chain_is_filled_on_the_way() -> None:
    with pytest.raises(InvalidInput, match="the signing CA's key cannot be read"):
        planning.planned(OLD.files(), None, root_cert=None, issuer=None, where="x", now=NOW)
    own = pem(OLD.root.certificate)
    both = own + pem(NEW.root.certificate)
    plan = planning.planned(
        replace(OLD.files(), cert_chain=""), OLD.key, root_cert=both, issuer=None, where="x", now=NOW
    )
    assert plan.files.cert_chain == pem(OLD.issuer.certificate, OLD.root.certificate)
    assert plan.why == "it held other roots; its chain was empty"
    with pytest.raises(GateRefused, match="the issuer does not verify against the roots at the source"):
        planning.planned(OLD.files(), OLD.key, root_cert=None, issuer=NEW.material, where="x", now=NOW)


def test_a_secret_that_a_controller_owns_is_that_tools_and_a_stranger_is_nobody() -> None:
    def owned(kind: str) -> dict[str, Any]:
        return {"metadata": {"name": "cacerts", "ownerReferences": [{"kind": kind, "name": "x"}]}}

    assert owner_of(owned("ExternalSecret")) is Tool.EXTERNAL_SECRETS
    assert owner_of(owned("Something")) is Tool.PLAIN


# --- what proxies answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"clients": [{}]}', b'{"clients": [1]}'])
def test_a_list_of_connections_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_list(body, "istiod x")
    assert (caught.value.what, caught.value.where) == ("no list of connections", "istiod x")


def changed(change: dict[str, str]) -> bytes:
    dump = secrets_dump(text(LEAF, ISSUER), text(ROOT))
    dump["configs"][1]["secret"]["validation_context"]["trusted_ca"] = change
    return json.dumps(dump).encode()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"inline_bytes": "not base64!"}, "bytes are not base64"),
        ({"filename": "/etc/certs/root-cert.pem"}, "Envoy reads it from a file and does not say what it read"),
        ({"inline_string": "words"}, "roots"),
        ({}, "roots"),
    ],
)
def test_roots_that_an_envoy_does_not_say_are_unknown_and_not_none(source: dict[str, str], told: str) -> None:
    found = read_secrets(changed(source), where="proxy x")
    assert found.roots is None
    assert told in "; ".join(found.problems)
    assert found.chain[0] == LEAF


def test_roots_as_a_string_are_read_as_those_in_bytes() -> None:
    found = read_secrets(changed({"inline_string": text(ROOT)}), where="proxy x")
    assert (found.roots is not None, found.problems) == (True, ())


def test_a_secret_that_an_envoy_holds_twice_counts_where_both_are_the_same() -> None:
    first, second = (secrets_dump(text(LEAF, ISSUER), text(ROOT))["configs"] for _ in range(2))
    twice = read_secrets(json.dumps({"configs": [*first, *second]}).encode())
    assert (twice.chain[0], twice.problems) == (LEAF, ())
    other = secrets_dump(text(LEAF, ISSUER), text(ROOT, ISSUER))["configs"]
    found = read_secrets(json.dumps({"configs": [*other, *first]}).encode())
    assert found.roots is None
    assert found.problems == ("roots: it holds secret ROOTCA 2 times, and not the same",)


def test_roots_that_another_identity_provider_gives_by_trust_domain_are_told_as_such() -> None:
    dump = secrets_dump(text(LEAF, ISSUER), text(ROOT))
    spiffe = {"trust_domains": [{"name": "cluster.local", "trust_bundle": {"inline_string": text(ROOT)}}]}
    validator = {"name": "envoy.tls.cert_validator.spiffe", "typed_config": spiffe}
    dump["configs"][1]["secret"]["validation_context"] = {"custom_validator_config": validator}
    found = read_secrets(json.dumps(dump).encode())
    assert found.roots is None
    (problem,) = found.problems
    assert "envoy.tls.cert_validator.spiffe: another identity provider than istiod" in problem


def held(*items: Any) -> list[dict[str, str]]:
    return [{"pem": base64.b64encode(text(item).encode()).decode()} for item in items]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"certChain": [{"pem": "***"}], "rootCerts": held(ROOT)}, "leaf: bytes are not base64"),
        ({"certChain": held(ISSUER), "rootCerts": held(ROOT)}, "leaf: none among its certificates"),
        ({"certChain": held(LEAF, ISSUER), "rootCerts": [{"pem": "***"}]}, "roots: bytes are not base64"),
        ({"certChain": held(LEAF, ISSUER)}, "roots: this version does not say which it holds"),
    ],
)
def test_what_a_ztunnel_does_not_say_of_a_certificate_is_unknown(entry: dict[str, Any], told: str) -> None:
    whole = {"identity": "spiffe://td/ns/a/sa/b", "state": "Available", **entry}
    ((_, _, _, problem),) = read_dump(json.dumps({"certificates": [whole]}).encode(), "ztunnel x")
    assert told in problem


@pytest.mark.parametrize(
    ("labels", "args", "kind"),
    [
        ({"gateway.istio.io/managed": "istio.io-mesh-controller-waypoint"}, ["proxy", "sidecar"], "waypoint"),
        ({}, ["proxy", "waypoint"], "waypoint"),
        ({"gateway.istio.io/managed": "istio.io-gateway-controller"}, ["proxy", "router"], "gateway"),
        ({}, ["proxy", "sidecar"], "sidecar"),
    ],
)
def test_a_proxys_kind_is_what_its_labels_and_arguments_say(labels: dict[str, str], args: list[str], kind: str) -> None:
    container = {"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.30.1", "args": args}
    assert kind_of({"metadata": {"labels": labels}, "spec": {"containers": [container]}}) == kind


def test_a_ztunnels_pod_and_a_pods_revision_are_told_by_their_labels() -> None:
    container = {"name": "istio-proxy", "image": "docker.io/istio/ztunnel:1.30.1"}
    assert kind_of({"metadata": {"labels": {"app": "ztunnel"}}, "spec": {"containers": [container]}}) == "ztunnel"
    assert revision_of({"metadata": {"labels": {"istio.io/rev": "asm-1-30"}}}) == "asm-1-30"
    assert (
        revision_of({"metadata": {"annotations": {"istio.io/rev": "canary"}, "labels": {"istio.io/rev": "x"}}})
        == "canary"
    )
    assert revision_of({"metadata": {}}) == ""
    assert image_version("docker.io/istio/ztunnel@sha256:" + "0" * 64) is None


# --- places --------------------------------------------------------------------------------------------------------


def test_a_trust_bundle_that_istiod_is_told_to_keep_and_that_is_not_there_declares_nothing(
    fresh_api: Running, cluster: Cluster
) -> None:
    mesh = Mesh(fresh_api, cluster)
    labels = {"app": "istiod", "istio.io/rev": "default"}
    template = istiod_template(labels, {"ENABLE_CLUSTER_TRUST_BUNDLE_API": "true"}, "1.30.1")
    mesh.deployment("istio-system", "istiod", template)
    try:
        places = read_places(cluster, read_layout(cluster, "istio-system"))
        (place,) = places.others
        assert place.name == "clustertrustbundle/istio.io:istiod-ca:root-cert"
        assert (place.fingerprints, bool(place.problem)) == (frozenset(), True)
        item = cluster.get(DEPLOYMENTS, "istiod", "istio-system")
        item["spec"]["template"]["spec"]["containers"][0]["env"] = []
        cluster.replace(DEPLOYMENTS, item)
        assert read_places(cluster, read_layout(cluster, "istio-system")).others == ()
    finally:
        mesh.close()
