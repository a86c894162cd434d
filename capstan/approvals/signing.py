"""Sign a statement, and verify a signature over one."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from capstan.approvals import jws, sshsig
from capstan.errors import InvalidInput, VerificationFailed
from capstan.pki.inspect import Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capstan.approvals.keys import ListedKey
    from capstan.approvals.statement import Statement

NAMESPACE: Final = "capstan-approval"
"""Namespace of SSH signatures: one made for a commit or a login counts for nothing here, and the other way round."""

_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_PUBLIC = ("ssh-", "ecdsa-", "sk-")


def verify(statement: Statement, signature: str, key: ListedKey, *, asked: datetime, given: datetime) -> None:
    """Check that `key` signed exactly this statement.

    Args:
        asked: When the request was made, aware UTC.
        given: When the answer was taken down, aware UTC.

    Raises:
        VerificationFailed: It does not verify; says why.
    """
    if key.certificate is not None:
        jws.verify(statement, signature, key.certificate, asked=asked, given=given)
    elif key.ssh is not None:
        sshsig.verify(statement.text().encode("utf-8"), signature, NAMESPACE, key.ssh)
    else:
        raise VerificationFailed("there is no key to verify with", where=f"approver {key.name}")


def verify_own(statement: Statement, signature: str) -> str:
    """Check a signature as far as that goes without the list of approvers: for whoever is about to send it.

    An SSH signature carries its key, so it is checked whole. A JSON Web Signature only names its certificate.

    Returns:
        Fingerprint of the key it was made with, as `ListedKey.id`.

    Raises:
        VerificationFailed: It is no signature, or one over something else.
    """
    if not sshsig.is_sshsig(signature):
        return jws.signer(signature)
    key = sshsig.signer(signature)
    sshsig.verify(statement.text().encode("utf-8"), signature, NAMESPACE, key)
    return key.fingerprint


def sign(
    statement: Statement,
    key: Path,
    *,
    certificate: Path | None = None,
    passphrase: Callable[[], str] | None = None,
    at: datetime | None = None,
) -> str:
    """Sign with a key from a file.

    An OpenSSH key makes an SSH signature; a PEM key with a certificate (in the same file or beside it) a JSON Web
    Signature. `ssh-keygen` is asked where the key is not in the file: one that an agent holds (give its `.pub` file),
    one on hardware, or one under a passphrase, which `ssh-keygen` then asks for itself.

    Args:
        passphrase: Called if a PEM key is encrypted.
        at: Time of signing, aware UTC; default: now.

    Raises:
        InvalidInput: The file holds no key that can sign an approval, or certificate and key do not belong together.
    """
    text = _read(key)
    if certificate is not None or _CERTIFICATE in text:
        return _sign_jws(statement, key, text, certificate, passphrase, at or datetime.now(UTC))
    message = statement.text().encode("utf-8")
    if text.startswith(_PUBLIC):
        return _ssh_keygen(message, key)
    if not text.lstrip().startswith(_OPENSSH):
        return sshsig.sign(message, NAMESPACE, _pem_key(key, text, passphrase))
    try:
        private = load_ssh_private_key(text.encode("ascii"), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Under a passphrase, on hardware, or broken: `ssh-keygen` knows, asks, and says.
        return _ssh_keygen(message, key)
    return sshsig.sign(message, NAMESPACE, _usable(private, key))


def _sign_jws(
    statement: Statement,
    key: Path,
    text: str,
    certificate: Path | None,
    passphrase: Callable[[], str] | None,
    at: datetime,
) -> str:
    listed_in = certificate or key
    pem = _read(listed_in)
    # A key may stand before or after the certificate in one file; the certificate is read alone.
    start, end = pem.find(_CERTIFICATE), pem.find("-----END CERTIFICATE-----")
    if start < 0 or end < start:
        raise _unusable(listed_in, "no certificate", "a PEM certificate")
    found = Certificate.from_pem(pem[start : end + len("-----END CERTIFICATE-----")] + "\n", str(listed_in))
    private = _pem_key(key, text, passphrase)
    if private.public_key() != found.public_key:
        raise _unusable(key, "a key that does not belong to the certificate", f"the key of {found.subject}")
    return jws.sign(statement, private, found, at)


def _pem_key(path: Path, text: str, passphrase: Callable[[], str] | None) -> sshsig.PrivateKey:
    data = text.encode("utf-8")
    try:
        try:
            private = load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            if passphrase is None:
                raise
            private = load_pem_private_key(data, passphrase().encode("utf-8"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The library's own words are not repeated: they may quote the file.
        raise _unusable(
            path, "no private key that can be read, or another passphrase", "an OpenSSH or PEM private key"
        ) from error
    return _usable(private, path)


def _usable(private: Any, path: Path) -> sshsig.PrivateKey:
    if isinstance(private, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return private
    raise _unusable(path, type(private).__name__, "an Ed25519, ECDSA or RSA key")


def _ssh_keygen(message: bytes, key: Path) -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise _unusable(
            key, "a key that only ssh-keygen can use, and no ssh-keygen", "ssh-keygen (OpenSSH 8.2 or later)"
        )
    command = [program, "-Y", "sign", "-f", str(key), "-n", NAMESPACE]
    # Its questions (passphrase, touch) and complaints go to the terminal of whoever signs.
    done = subprocess.run(command, input=message, stdout=subprocess.PIPE, check=False)
    signature = done.stdout.decode("ascii", "replace")
    if done.returncode or not sshsig.is_sshsig(signature):
        raise InvalidInput(
            "ssh-keygen did not sign", where=str(key), observed=f"exit status {done.returncode}",
            expected="a signature; ssh-keygen says above what is wrong", next_command="ssh-add -l",
        )  # fmt: skip
    return signature


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        observed = error.strerror if isinstance(error, OSError) and error.strerror else "no text"
        raise _unusable(path, observed, "a readable file") from error


def _unusable(path: Path, observed: str, expected: str) -> InvalidInput:
    return InvalidInput(
        "this file cannot be signed with", where=str(path), observed=observed, expected=expected,
        next_command="capstan approve --help",
    )  # fmt: skip
