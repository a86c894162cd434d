"""The key and certificates in istiod's memory, and the checks before they get there (security/pkg/pki/util Verify)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.lab.istio import golog
from infra.lab.linkerd import gopem, gox509

if TYPE_CHECKING:
    from datetime import datetime

    from infra.lab.istio.istiod.versions import Rules


class BundleError(ValueError):
    """Material istiod refuses; the text is what it prints."""


@dataclass(frozen=True)
class Bundle:
    """One accepted state, the texts byte for byte as they were read."""

    cert_pem: bytes
    key: gopem.PrivateKey = field(repr=False)
    chain_pem: bytes
    root_pem: bytes
    crl_pem: bytes
    signer: x509.Certificate

    @property
    def root_text(self) -> str:
        """The whole root bundle, as it is distributed."""
        return self.root_pem.decode("utf-8", "replace")


def certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a text as x509.CertPool.AppendCertsFromPEM takes them: what is none is skipped."""
    found: list[x509.Certificate] = []
    while True:
        block, pem = gopem.decode(pem)
        if block is None:
            return found
        if block.type != b"CERTIFICATE":
            continue
        try:
            found.append(x509.load_der_x509_certificate(block.der))
        except ValueError:
            continue


def first_certificate(pem: bytes) -> x509.Certificate:
    """The first PEM block as a certificate (ParsePemEncodedCertificate).

    Raises:
        BundleError: "invalid PEM encoded certificate" or "failed to parse X.509 certificate".
    """
    block, _ = gopem.decode(pem)
    if block is None:
        raise BundleError("invalid PEM encoded certificate")
    try:
        return x509.load_der_x509_certificate(block.der)
    except ValueError as error:
        raise BundleError("failed to parse X.509 certificate") from error


def elements(pem: bytes) -> list[str]:
    """A text cut into its PEM blocks, without the line ends around each (PemCertBytestoString)."""
    found = []
    while pem:
        block, rest = gopem.decode(pem)
        if block is None:
            break
        found.append(pem[: len(pem) - len(rest)].decode("utf-8", "replace").removesuffix("\n").removeprefix("\n"))
        pem = rest
    return found


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether basic constraints say CA."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def verified(
    cert_pem: bytes, key_pem: bytes, chain_pem: bytes, root_pem: bytes, crl_pem: bytes, *, rules: Rules, now: datetime
) -> Bundle:
    """Check the material in istiod's order and take it.

    Raises:
        BundleError: It does not parse, does not chain to the roots now, or key and certificate differ.
    """
    try:
        signer = first_certificate(cert_pem)
    except BundleError as error:
        raise BundleError(f"failed to parse cert PEM: {error}") from error
    try:
        gox509.verify(signer, roots=certificates(root_pem), intermediates=certificates(chain_pem), now=now)
    except gox509.VerifyError as error:
        raise BundleError(
            f"cannot verify the cert with the provided root chain and cert pool with error: {error}"
        ) from error
    try:
        key = private_key(key_pem)
    except BundleError as error:
        raise BundleError(f"failed to parse private key PEM: {error}") from error
    if _public(signer.public_key()) != _public(key.public_key()):
        detail = ": tls: private key does not match public key" if rules.version >= (1, 21, 0) else ""
        raise BundleError(f"the cert does not match the key{detail}")
    if crl_pem:
        _check_lists(chain_pem, crl_pem)
    return Bundle(cert_pem, key, chain_pem, root_pem, crl_pem, signer)


def private_key(pem: bytes) -> gopem.PrivateKey:
    """The key of the first PEM block (ParsePemEncodedKey): a block in front of it, such as openssl's EC PARAMETERS,
    is not skipped.

    Raises:
        BundleError: In istiod's words.
    """
    block, _ = gopem.decode(pem)
    if block is None:
        raise BundleError("invalid PEM-encoded key")
    if block.type not in _KEY_KINDS:
        raise BundleError(
            f"unsupported PEM block type for a private key: {block.type.decode('utf-8', errors='replace')}"
        )
    try:
        return gopem.private_key(pem)
    except gopem.PemError as error:
        raise BundleError(f"failed to parse the {_KEY_KINDS[block.type]} private key") from error


_KEY_KINDS = {b"EC PRIVATE KEY": "ECDSA", b"RSA PRIVATE KEY": "RSA", b"PRIVATE KEY": "PKCS8"}


def _public(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]  # any public key has it


def _check_lists(chain_pem: bytes, crl_pem: bytes) -> None:
    """Envoy wants a revocation list of every authority in the chain if there is one of any; so does istiod."""
    missing = {golog.name(certificate.subject): certificate for certificate in certificates(chain_pem)}
    while True:
        block, crl_pem = gopem.decode(crl_pem)
        if block is None:
            break
        try:
            listed = x509.load_der_x509_crl(block.der)
        except ValueError as error:
            raise BundleError(f"failed to parse CRL PEM: {error}") from error
        for subject, certificate in list(missing.items()):
            try:
                signed = listed.is_signature_valid(certificate.public_key())  # type: ignore[arg-type]  # CA keys sign
            except (TypeError, ValueError, InvalidSignature):
                signed = False
            if signed:
                del missing[subject]
    if missing:
        raise BundleError(f"missing CRLs for CAs: {', '.join(missing)}")
