"""Every tool that may own Linkerd's objects: recognised, then written, or refused with the change to commit there."""

from __future__ import annotations

import base64
import gzip
import json
import secrets as random

import pytest
from ruamel.yaml import YAML

from capstan.cluster.resources import CONFIG_MAPS, NAMESPACES, SECRETS, Resource
from capstan.errors import InvalidInput, NotFound, OwnedElsewhere
from capstan.pki.bundle import Bundle
from capstan.systems.base import Status
from capstan.systems.linkerd.anchors import ensure_bundle
from capstan.systems.linkerd.checks import judge
from capstan.systems.linkerd.layout import Tool
from capstan.systems.linkerd.owners import helm_release, read_release, release_drift, remedy, require_ours
from capstan.systems.linkerd.values import get_value
from tests.pki.ca import make
from tests.support.apiserver import Running
from tests.systems.linkerd_evidence import healthy

OLD, NEW = make("root.linkerd.cluster.local").certificate, make("root.linkerd.cluster.local").certificate
BOTH = Bundle.of(OLD, NEW)
ROOTS = "linkerd-identity-trust-roots"
VALUES = "# kept by hand\nclusterDomain: cluster.local\nidentityTrustAnchorsPEM: |-\n"
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
BUNDLES = Resource("trust.cert-manager.io", "v1alpha1", "bundles", "Bundle", namespaced=False)

HELM = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {"meta.helm.sh/release-name": "mesh"}}
ARGO = {"annotations": {"argocd.argoproj.io/tracking-id": "mesh-prod:/ConfigMap:linkerd/linkerd-identity-trust-roots"}}
FLUX_HELM = {
    "labels": {"helm.toolkit.fluxcd.io/name": "mesh", "helm.toolkit.fluxcd.io/namespace": "gitops"},
    "annotations": {"meta.helm.sh/release-name": "mesh"},
}
FLUX_PLAIN = {"labels": {"kustomize.toolkit.fluxcd.io/name": "mesh", "kustomize.toolkit.fluxcd.io/namespace": "gitops"}}
TRUST_MANAGER = {"labels": {"trust.cert-manager.io/bundle": ROOTS}}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def cluster(running):
    cluster = running.connect()
    yield cluster
    cluster.close()


@pytest.fixture
def namespace(cluster):
    name = f"l-{random.token_hex(4)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def indented(bundle: Bundle) -> str:
    return "".join(f"  {line}\n" for line in bundle.pem().splitlines())


def install(cluster, namespace, marks=None, *, roots=None, overrides=False):
    """The objects of an installation that hold roots, with a tool's marks on the ConfigMaps."""
    roots = roots or Bundle.of(OLD)
    for name, data in (
        (ROOTS, {"ca-bundle.crt": roots.pem()}),
        ("linkerd-config", {"values": VALUES + indented(roots)}),
    ):
        metadata = {"name": name, "namespace": namespace, **(marks or {})}
        cluster.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    if overrides:
        text = base64.b64encode(f"identityTrustAnchorsPEM: |\n{indented(roots)}".encode()).decode()
        metadata = {"name": "linkerd-config-overrides", "namespace": namespace}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"linkerd-config-overrides": text}}
        cluster.create(SECRETS, body)


def release(cluster, namespace, values, *, revision=1, status="deployed"):
    """A revision as Helm 3 keeps it."""
    packed = gzip.compress(json.dumps({"name": "mesh", "version": revision, "config": values}).encode())
    labels = {"owner": "helm", "name": "mesh", "status": status, "version": str(revision)}
    metadata = {"name": f"sh.helm.release.v1.mesh.v{revision}", "namespace": namespace, "labels": labels}
    data = {"release": base64.b64encode(base64.b64encode(packed)).decode()}
    body = {"apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1", "metadata": metadata, "data": data}
    return cluster.create(SECRETS, body)


def declared(cluster, namespace):
    """The roots in the trust-roots ConfigMap and in linkerd-config."""
    roots = cluster.get(CONFIG_MAPS, ROOTS, namespace)["data"]["ca-bundle.crt"]
    values = cluster.get(CONFIG_MAPS, "linkerd-config", namespace)["data"]["values"]
    value = get_value(values, ("identityTrustAnchorsPEM",), "x")
    return [Bundle.parse(text, "x").fingerprints for text in (roots, value)]


def refused(cluster, namespace) -> str:
    """What the refusal says to do; nothing may have been written."""
    with pytest.raises(OwnedElsewhere) as caught:
        ensure_bundle(cluster, namespace, BOTH)
    assert declared(cluster, namespace) == [{OLD.fingerprint}] * 2
    return caught.value.next_command


def committed(text: str) -> Bundle:
    """The roots of the printed change, as the tool would parse them."""
    yaml = "\n".join(line for line in text.splitlines()[1:] if not line.startswith("("))
    return Bundle.parse(YAML(typ="safe").load(yaml)["identityTrustAnchorsPEM"], "printed")


@pytest.mark.proves("owners", "plain manifests", "written in both ConfigMaps, nothing else of them changed")
def test_objects_that_nobody_owns_are_written_in_every_place(cluster, namespace):
    install(cluster, namespace)
    changes = ensure_bundle(cluster, namespace, BOTH)
    assert [change.written for change in changes] == [True, True]
    assert declared(cluster, namespace) == [BOTH.fingerprints] * 2
    values = cluster.get(CONFIG_MAPS, "linkerd-config", namespace)["data"]["values"]
    assert values.startswith("# kept by hand\nclusterDomain: cluster.local\n")
    assert [change.written for change in ensure_bundle(cluster, namespace, BOTH)] == [False, False]


@pytest.mark.proves(
    "owners", "linkerd CLI", "its Secret of overrides is written too: the next `linkerd upgrade` agrees"
)
def test_a_cli_install_has_its_overrides_written_as_well(cluster, namespace):
    install(cluster, namespace, overrides=True)
    changes = ensure_bundle(cluster, namespace, BOTH)
    assert [change.written for change in changes] == [True, True, True]
    data = cluster.get(SECRETS, "linkerd-config-overrides", namespace)["data"]["linkerd-config-overrides"]
    text = YAML(typ="safe").load(base64.b64decode(data).decode())["identityTrustAnchorsPEM"]
    assert Bundle.parse(text, "x").fingerprints == BOTH.fingerprints


@pytest.mark.proves("owners", "Helm", "refused; the values of the release are printed")
def test_a_helm_release_is_refused_with_the_value_to_upgrade_with(cluster, namespace):
    install(cluster, namespace, HELM)
    said = refused(cluster, namespace)
    assert f"Helm release mesh -n {namespace}" in said
    assert "helm upgrade" in said
    assert committed(said).fingerprints == BOTH.fingerprints


@pytest.mark.proves("owners", "Argo CD", "refused; application and change are printed")
def test_an_argo_application_is_refused_with_the_change_to_commit(cluster, namespace):
    install(cluster, namespace, ARGO)
    said = refused(cluster, namespace)
    assert "Argo CD application mesh-prod " in said
    assert committed(said).fingerprints == BOTH.fingerprints


@pytest.mark.proves("owners", "Flux", "refused; HelmRelease or Kustomization and change are printed")
@pytest.mark.parametrize(
    ("marks", "source", "command"),
    [
        (FLUX_HELM, "HelmRelease gitops/mesh", "flux reconcile helmrelease mesh -n gitops --with-source"),
        (FLUX_PLAIN, "Kustomization gitops/mesh", "flux reconcile kustomization mesh -n gitops --with-source"),
    ],
    ids=["HelmRelease", "Kustomization"],
)
def test_flux_is_refused_with_its_source_and_the_change_to_commit(cluster, namespace, marks, source, command):
    install(cluster, namespace, marks)
    said = refused(cluster, namespace)
    assert source in said
    assert command in said
    assert committed(said).fingerprints == BOTH.fingerprints


@pytest.mark.proves("owners", "trust-manager", "refused; its Bundle with its present sources, and a source to add")
def test_a_bundle_of_trust_manager_is_refused_with_its_sources(cluster, namespace):
    names = {"plural": "bundles", "singular": "bundle", "kind": "Bundle"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "trust.cert-manager.io", "scope": "Cluster", "names": names, "versions": [version]}
    metadata = {"name": "bundles.trust.cert-manager.io"}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    cluster.create(CRDS, {**body, "metadata": metadata, "spec": spec})
    sources = [
        {"secret": {"name": "linkerd-trust-anchor", "key": "tls.crt"}},
        {"secret": {"name": "linkerd-previous-anchor", "key": "tls.crt"}},
        {"useDefaultCAs": True},
    ]
    until = cluster.clock() + 5
    while True:
        try:
            cluster.create(
                BUNDLES,
                {
                    "apiVersion": "trust.cert-manager.io/v1alpha1",
                    "kind": "Bundle",
                    "metadata": {"name": ROOTS},
                    "spec": {"sources": sources},
                },
            )
            break
        except NotFound:  # not served yet
            assert cluster.clock() < until
            cluster.sleep(0.05)
    install(cluster, namespace, TRUST_MANAGER)
    said = refused(cluster, namespace)
    assert f"the sources of Bundle {ROOTS} yield exactly this" in said
    assert "secret linkerd-trust-anchor tls.crt, secret linkerd-previous-anchor tls.crt, useDefaultCAs" in said
    printed = YAML(typ="safe").load("\n".join(said.splitlines()[1:]))
    assert Bundle.parse(printed["spec"]["sources"][0]["inLine"], "printed").fingerprints == BOTH.fingerprints


@pytest.mark.proves("owners", "trust-manager", "without the right to read Bundles it is refused all the same")
def test_a_bundle_that_cannot_be_read_is_named_all_the_same(cluster):
    item = {"metadata": {"name": "other-roots", "namespace": "linkerd", **TRUST_MANAGER}}
    change = remedy(item, Tool.TRUST_MANAGER, BOTH)
    with pytest.raises(OwnedElsewhere, match="trust-manager's Bundle other-roots"):
        require_ours(cluster, item, "configmap linkerd/other-roots", change, (), cli_install=False)


@pytest.mark.proves("owners", "cert-manager", "the issuer is refused; Certificate, Issuer and `cmctl renew` are named")
def test_an_issuer_of_cert_manager_is_refused_with_its_certificate_and_its_issuer(cluster):
    annotations = {
        "cert-manager.io/certificate-name": "identity",
        "cert-manager.io/issuer-name": "mesh-root",
        "cert-manager.io/issuer-kind": "ClusterIssuer",
    }
    item = {"metadata": {"name": "linkerd-identity-issuer", "namespace": "linkerd", "annotations": annotations}}
    with pytest.raises(OwnedElsewhere) as caught:
        require_ours(cluster, item, "secret linkerd/linkerd-identity-issuer", "", (), cli_install=False)
    assert "Certificate linkerd/identity" in caught.value.next_command
    assert "ClusterIssuer mesh-root" in caught.value.next_command
    assert "cmctl renew -n linkerd identity" in caught.value.next_command


@pytest.mark.proves("owners", "External Secrets, Sealed Secrets, Vault", "refused; the object that makes it is named")
@pytest.mark.parametrize("kind", ["ExternalSecret", "SealedSecret", "VaultStaticSecret", "MeshInstallation"])
def test_what_a_controller_keeps_as_it_wants_it_is_refused_and_its_object_is_named(cluster, namespace, kind):
    owner = {"apiVersion": "x.example/v1", "kind": kind, "name": "mesh", "uid": "1", "controller": True}
    install(cluster, namespace, {"ownerReferences": [owner]})
    said = refused(cluster, namespace)
    assert f"{kind} {namespace}/mesh makes this object" in said
    assert committed(said).fingerprints == BOTH.fingerprints


@pytest.mark.parametrize("marks", [HELM, ARGO, FLUX_HELM, FLUX_PLAIN, TRUST_MANAGER], ids=str)
def test_once_the_tool_has_applied_the_change_the_same_command_goes_on(cluster, namespace, marks):
    install(cluster, namespace, marks, roots=BOTH)
    assert [change.written for change in ensure_bundle(cluster, namespace, BOTH)] == [False, False]


@pytest.mark.proves(
    "owners", "Helm", "a release that would take the roots back is refused, though the objects are right"
)
def test_roots_that_were_put_past_the_helm_release_are_refused_as_the_next_upgrade_takes_them_back(cluster, namespace):
    install(cluster, namespace, HELM, roots=BOTH)
    release(cluster, namespace, {"identityTrustAnchorsPEM": BOTH.pem()}, revision=1, status="superseded")
    release(cluster, namespace, {"identityTrustAnchorsPEM": OLD.pem()}, revision=9)
    with pytest.raises(OwnedElsewhere) as caught:
        ensure_bundle(cluster, namespace, BOTH)
    assert "next helm upgrade" in caught.value.what
    assert f"{namespace}/mesh v9" in caught.value.where
    assert committed(caught.value.next_command).fingerprints == BOTH.fingerprints
    item = cluster.get(CONFIG_MAPS, ROOTS, namespace)
    assert f"mesh v9 declares {{{OLD.fingerprint[:8]}}}" in release_drift(cluster, item, BOTH.fingerprints)
    accepted = ensure_bundle(cluster, namespace, BOTH, accept=[Tool.HELM])
    assert [change.written for change in accepted] == [False, False]


@pytest.mark.proves("owners", "Helm", "a release that agrees, or holds no roots (externalCA), is no drift")
@pytest.mark.parametrize(
    "values", [{"identityTrustAnchorsPEM": BOTH.pem() + "\n"}, {"identity": {"externalCA": True}}, None]
)
def test_a_helm_release_that_agrees_or_declares_nothing_is_no_drift(cluster, namespace, values):
    install(cluster, namespace, HELM, roots=BOTH)
    release(cluster, namespace, values, revision=10)
    assert [change.written for change in ensure_bundle(cluster, namespace, BOTH)] == [False, False]
    assert release_drift(cluster, cluster.get(CONFIG_MAPS, ROOTS, namespace), BOTH.fingerprints) == ""


def test_the_latest_deployed_revision_counts_and_its_keys_are_never_shown(cluster, namespace):
    install(cluster, namespace, HELM)
    key = "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----"
    for revision in (9, 10):
        release(cluster, namespace, {"identity": {"issuer": {"tls": {"keyPEM": key}}}}, revision=revision)
    found = helm_release(cluster, cluster.get(CONFIG_MAPS, ROOTS, namespace))
    assert found.name == f"{namespace}/mesh v10"
    assert "c2VjcmV0" not in f"{found!r}{found}"


@pytest.mark.parametrize(
    "content", [b"", b"not base64 !", base64.b64encode(b"\x1f\x8bbroken"), base64.b64encode(b"[]")]
)
def test_a_release_that_cannot_be_read_is_one_error_that_quotes_nothing(content):
    secret = {"metadata": {"name": "r"}, "data": {"release": base64.b64encode(content).decode()}}
    with pytest.raises(InvalidInput, match="Helm release cannot be read") as caught:
        read_release(secret, "secret linkerd/r")
    assert "broken" not in str(caught.value)


def test_a_release_that_cannot_be_read_is_reported_as_drift_and_not_passed_over(cluster, namespace):
    install(cluster, namespace, HELM)
    secret = release(cluster, namespace, {}, revision=3)
    cluster.patch(SECRETS, secret["metadata"]["name"], {"data": {"release": "AAAA"}}, namespace)
    item = cluster.get(CONFIG_MAPS, ROOTS, namespace)
    assert "cannot be read" in release_drift(cluster, item, BOTH.fingerprints)


@pytest.mark.proves("owners", "drift", "`capstan check` names the place, and the Helm release, that say otherwise")
def test_a_release_that_drifted_is_a_warning_of_the_check():
    about = "all places that declare the trust anchors agree"
    found = {check.description: check for check in judge(healthy())}
    assert found[about].status is Status.OK
    found = {
        check.description: check for check in judge(healthy(release_drift="Helm release linkerd/mesh v9 declares {1}"))
    }
    assert found[about].status is Status.WARNING
    assert "mesh v9" in found[about].message
