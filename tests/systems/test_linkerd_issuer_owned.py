"""An issuer that a tool renders: what has to be put into its source is said, and where the key is, never the key."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from ruamel.yaml import YAML

from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.rotation.material import kept_in
from capstan.systems.base import IssuerMaterial
from capstan.systems.linkerd.issuer import remedy
from capstan.systems.linkerd.layout import Scheme
from capstan.vaults.base import Reference
from tests.pki.ca import make

ROOT = make("root.linkerd.cluster.local")
PAIR = make("identity.linkerd.cluster.local", ROOT, path_length=0)
ENTRY = "capstan-mesh-issuer-east"


def reference(vault):
    return Reference(vault, ENTRY, "7f3a", "f" * 64, "c" * 64, (), datetime(2026, 11, 22, tzinfo=UTC))


def issuer(vault):
    return IssuerMaterial((PAIR.certificate,), PrivateKey(PAIR.key), kept_in(reference(vault)))


def secret(**metadata):
    return {"metadata": {"name": "linkerd-identity-issuer", "namespace": "linkerd", **metadata}}


@pytest.mark.proves(
    "owners", "Helm", "an issuer that the chart renders: its values, and the vault's entry with the key"
)
@pytest.mark.parametrize(
    "marks",
    [
        {"annotations": {"meta.helm.sh/release-name": "mesh"}},
        {"annotations": {"argocd.argoproj.io/tracking-id": "mesh:/Secret:linkerd/linkerd-identity-issuer"}},
        {"labels": {"helm.toolkit.fluxcd.io/name": "mesh"}},
    ],
    ids=["Helm", "Argo CD", "Flux"],
)
def test_the_charts_values_are_said_with_the_place_of_the_key(marks):
    said = remedy(secret(**marks), issuer("https://mesh.vault.azure.net"), Scheme.LINKERD)
    values = YAML(typ="safe").load(said)["identity"]["issuer"]["tls"]
    assert list(values) == ["crtPEM"]
    assert Bundle.parse(values["crtPEM"], "printed").certificates == (PAIR.certificate,)
    key = said.splitlines()[-1].strip()
    assert key.startswith(f"# keyPEM: the private key that is kept as {ENTRY}, version 7f3a")
    assert f"az keyvault secret show --id https://mesh.vault.azure.net/secrets/{ENTRY}/7f3a" in key
    assert "PRIVATE KEY" not in said


@pytest.mark.parametrize(
    ("scheme", "names"), [(Scheme.LINKERD, ("crt.pem", "key.pem")), (Scheme.KUBERNETES, ("tls.crt", "tls.key"))]
)
def test_a_source_of_the_secret_itself_gets_the_entries_that_identity_reads(scheme, names):
    owner = {"kind": "ExternalSecret", "name": "issuer", "controller": True}
    said = remedy(secret(ownerReferences=[owner]), issuer("local:/srv/vault"), scheme)
    assert list(YAML(typ="safe").load(said)) == [names[0]]
    assert (
        said.splitlines()[-1]
        == f"# {names[1]}: the private key that is kept as {ENTRY}, version 7f3a, in local:/srv/vault"
    )
    assert "PRIVATE KEY" not in said


def test_where_a_key_is_kept_is_no_part_of_what_an_issuer_is():
    assert issuer("local:/a") == issuer("local:/b")
