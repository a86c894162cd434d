"""The two forms in which a Secret can hold a plug-in CA, and how public texts and key go in and out of each.

istio       ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
kubernetes  tls.crt, tls.key, ca.crt; wins where `tls.crt` is there (pilot/pkg/bootstrap/istio_ca.go,
            detectSigningCABundleAndCRL). What writes it (cert-manager) puts one root into ca.crt, so it cannot go
            through an overlap of two (istio#50420)
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.keys import PrivateKey
from capstan.systems.base import IssuerMaterial
from capstan.systems.istio.layout import (
    CA_CERT_KEY,
    CA_KEY_KEY,
    CERT_CHAIN_KEY,
    ISTIO_GENERATED,
    ROOT_CERT_KEY,
    TLS_CERT_KEY,
)
from capstan.systems.istio.source import CaFiles
from capstan.systems.istio.texts import certificates_of, ended
from capstan.systems.linkerd.secrets import decoded, encoded

if TYPE_CHECKING:
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate

TLS_KEY_KEY: Final = "tls.key"
TLS_ROOT_KEY: Final = "ca.crt"
CRL_KEY: Final = "ca-crl.pem"
TLS_TYPE: Final = "kubernetes.io/tls"


class Form(StrEnum):
    """Which entries of the Secret istiod reads."""

    ISTIO = "istio"
    KUBERNETES = "kubernetes.io/tls"


def form_of(secret: Object) -> Form:
    """The form that istiod takes the Secret for."""
    return Form.KUBERNETES if TLS_CERT_KEY in (secret.get("data") or {}) else Form.ISTIO


def files_of(secret: Object) -> CaFiles:
    """The public texts of a Secret.

    Raises:
        NotFound: An entry is missing. InvalidInput: An entry is no text.
    """
    version = str(secret["metadata"].get("resourceVersion", ""))
    if form_of(secret) is Form.KUBERNETES:
        certificate, root = text_of(secret, TLS_CERT_KEY), text_of(secret, TLS_ROOT_KEY)
        return CaFiles(root, certificate, ended(certificate) + root, version)
    has_chain = CERT_CHAIN_KEY in (secret.get("data") or {})
    chain = text_of(secret, CERT_CHAIN_KEY) if has_chain else ""
    return CaFiles(text_of(secret, ROOT_CERT_KEY), text_of(secret, CA_CERT_KEY), chain, version)


def key_of(secret: Object) -> PrivateKey:
    """The signing CA's key.

    Raises:
        NotFound: There is none. InvalidPem: It cannot be read; the message never quotes it.
    """
    entry = TLS_KEY_KEY if form_of(secret) is Form.KUBERNETES else CA_KEY_KEY
    return PrivateKey.parse(decoded(secret, entry), f"{place_of(secret)} {entry}")


def text_of(secret: Object, entry: str) -> str:
    """One public entry as text.

    Raises:
        NotFound: There is no such entry. InvalidInput: It is not UTF-8.
    """
    try:
        return decoded(secret, entry).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(
            "the secret's entry is no text", where=f"{place_of(secret)} {entry}", expected="PEM certificates"
        ) from None


def place_of(secret: Object) -> str:
    """`secret istio-system/cacerts`."""
    return f"secret {secret['metadata'].get('namespace', '')}/{secret['metadata']['name']}"


def data_of(files: CaFiles, key: PrivateKey, key_text: bytes | None = None) -> dict[str, str]:
    """The four entries of the istio form.

    Args:
        key_text: The key exactly as it stood before, where it is not to change.
    """
    return {
        ROOT_CERT_KEY: encoded(files.root_cert),
        CA_CERT_KEY: encoded(files.ca_cert),
        CERT_CHAIN_KEY: encoded(files.cert_chain),
        CA_KEY_KEY: encoded(key_text if key_text is not None else key.pem()),
    }


def with_files(secret: Object, files: CaFiles, key: PrivateKey, *, same_key: bool) -> Object:
    """The Secret with these files in it, in its own form where that can hold them, else in the istio form.

    Entries that are not the CA's (`ca-crl.pem`, somebody's notes) stay; the mark of an istiod that made the Secret for
    itself goes, because from now on it is a plug-in CA.

    Raises:
        InvalidInput: A Secret of type kubernetes.io/tls cannot hold two roots, and its type cannot be changed.
    """
    data: dict[str, Any] = dict(secret.get("data") or {})
    form = form_of(secret)
    key_text = decoded(secret, TLS_KEY_KEY if form is Form.KUBERNETES else CA_KEY_KEY) if same_key else None
    if form is Form.KUBERNETES:
        roots = certificates_of(files.root_cert, place_of(secret))
        if secret.get("type") == TLS_TYPE and len(roots) > 1:
            raise InvalidInput(
                "this Secret cannot hold two roots", where=place_of(secret),
                observed="type kubernetes.io/tls, whose ca.crt is for one root; Kubernetes lets nobody change the type",
                expected=f"a Secret of type Opaque with {CA_CERT_KEY}, {CA_KEY_KEY}, {CERT_CHAIN_KEY}, {ROOT_CERT_KEY}",
                next_command=_way_out(secret),
            )  # fmt: skip
        if len(roots) == 1 and secret.get("type") == TLS_TYPE:
            own = {TLS_CERT_KEY: encoded(files.ca_cert), TLS_ROOT_KEY: encoded(files.root_cert),
                   TLS_KEY_KEY: encoded(key_text if key_text is not None else key.pem())}  # fmt: skip
            return {**secret, "data": {**data, **own}}
        for entry in (TLS_CERT_KEY, TLS_KEY_KEY, TLS_ROOT_KEY):
            data.pop(entry, None)
    data.pop(ISTIO_GENERATED, None)
    return {**secret, "data": {**data, **data_of(files, key, key_text)}}


def material_of(files: CaFiles, key: PrivateKey, where: str) -> IssuerMaterial:
    """The signing CA with its key, and what stands between it and a root.

    Raises:
        InvalidCertificate: The key is another certificate's. InvalidPem: A text cannot be read.
    """
    signer = certificates_of(files.ca_cert, where)
    if not signer:
        raise InvalidPem("no certificate", where=where, observed="ca-cert.pem without one", expected="the signing CA")
    if not signer[0].key_matches(key):
        raise InvalidCertificate(
            "the cert does not match the key", where=where, observed=repr(key), expected=f"the key of {signer[0]!r}",
            next_command="write certificate and key of one CA",
        )  # fmt: skip
    return IssuerMaterial(between(signer[0], files, where), key)


def between(signer: Certificate, files: CaFiles, where: str) -> tuple[Certificate, ...]:
    """The signing CA first, then the CAs of cert-chain.pem that stand between it and a root, in order.

    Others may stand there, too: what was signed by the CA before needs its chain as long as it lives.
    """
    roots = certificates_of(files.root_cert, where)
    chain = certificates_of(files.cert_chain, where)
    path = [signer]
    while path[-1] not in roots and not path[-1].self_signed:
        above = [each for each in chain if path[-1].signed_by(each) and each not in path and each not in roots]
        if not above or above[0].self_signed:
            break
        path.append(above[0])
    return tuple(path)


def chain_text(material: IssuerMaterial, root: Certificate) -> str:
    """cert-chain.pem as Istio's own tools make it: the signing CA, what stands above it, the root."""
    whole = (*material.chain, *(() if root in material.chain else (root,)))
    return "".join(f"{certificate.pem()}\n" for certificate in whole)


def _way_out(secret: Object) -> str:
    namespace, name = secret["metadata"].get("namespace", ""), secret["metadata"]["name"]
    return (
        f"make secret {name} anew in the istio form, with the same CA, while no istiod is being restarted (a running "
        f"one keeps what it has): kubectl delete secret {name} -n {namespace} && kubectl create secret generic {name} "
        f"-n {namespace} --from-file={CA_CERT_KEY} --from-file={CA_KEY_KEY} --from-file={CERT_CHAIN_KEY} "
        f"--from-file={ROOT_CERT_KEY}; then run the same command again"
    )
