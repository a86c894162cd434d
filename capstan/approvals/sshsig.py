"""SSHSIG: the signature format of `ssh-keygen -Y sign`.

Source: OpenSSH's PROTOCOL.sshsig (format), PROTOCOL.u2f (keys on hardware), RFC 8332 (RSA), RFC 5656 (ECDSA), RFC 8709
(Ed25519). Written here because the library at hand knows neither ECDSA nor hardware keys and takes any hash. Only what
the format allows is taken: SHA-256 and SHA-512, no SHA-1, no bytes left over, and the key as it is listed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from capstan.errors import VerificationFailed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

MAGIC: Final = b"SSHSIG"
VERSION: Final = 1
_ARMOUR = re.compile(r"-----BEGIN SSH SIGNATURE-----([A-Za-z0-9+/=\s]+)-----END SSH SIGNATURE-----")
_HASHES: Final = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_RSA: Final[dict[bytes, HashAlgorithm]] = {b"rsa-sha2-256": hashes.SHA256(), b"rsa-sha2-512": hashes.SHA512()}
_ECDSA: Final[dict[bytes, tuple[bytes, ec.EllipticCurve, HashAlgorithm]]] = {
    b"ecdsa-sha2-nistp256": (b"nistp256", ec.SECP256R1(), hashes.SHA256()),
    b"ecdsa-sha2-nistp384": (b"nistp384", ec.SECP384R1(), hashes.SHA384()),
    b"ecdsa-sha2-nistp521": (b"nistp521", ec.SECP521R1(), hashes.SHA512()),
}
_SK_ED25519: Final = b"sk-ssh-ed25519@openssh.com"
_SK_ECDSA: Final = b"sk-ecdsa-sha2-nistp256@openssh.com"
_USER_PRESENT: Final = 0x01  # PROTOCOL.u2f: somebody touched the key

Key = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An OpenSSH public key.

    Attributes:
        algorithm: Name of its type, such as `ssh-ed25519`.
        blob: Its encoding, by which two keys are compared.
        key: The key itself.
        application: What a key on hardware is made for (`ssh:`); empty for others.
    """

    algorithm: bytes
    blob: bytes
    key: Key
    application: bytes = b""

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Parse one line of a `.pub` file: type, base64, and perhaps a comment.

        Raises:
            ValueError: It is none, or of a kind that is not supported; the text says which.
        """
        parts = line.split(maxsplit=2)
        if len(parts) < 2 or "\n" in line.strip():
            raise ValueError("not one line with a key's type and its base64 text")
        try:
            blob = base64.b64decode(parts[1], validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64 after the type {parts[0]!r}") from error
        found = cls.decode(blob)
        if found.algorithm.decode("ascii") != parts[0]:
            raise ValueError(f"the line says {parts[0]!r}, the key in it is {found.algorithm.decode('ascii')!r}")
        return found

    @classmethod
    def decode(cls, blob: bytes) -> PublicKey:
        """Parse a key's encoding.

        Raises:
            ValueError: As `parse`.
        """
        reader = _Reader(blob)
        algorithm = reader.string()
        application = b""
        key: Key
        if algorithm in (b"ssh-ed25519", _SK_ED25519):
            key = ed25519.Ed25519PublicKey.from_public_bytes(reader.string())
        elif algorithm in _ECDSA or algorithm == _SK_ECDSA:
            name, curve, _ = _ECDSA[b"ecdsa-sha2-nistp256" if algorithm == _SK_ECDSA else algorithm]
            if reader.string() != name:
                raise ValueError("the curve is not the one its type names")
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, reader.string())
        elif algorithm == b"ssh-rsa":
            exponent, modulus = reader.mpint(), reader.mpint()
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        else:
            raise ValueError(f"key type {algorithm[:60].decode('ascii', 'replace')!r} is not supported")
        if algorithm in (_SK_ED25519, _SK_ECDSA):
            application = reader.string()
        reader.end()
        return cls(algorithm, blob, key, application)

    @classmethod
    def of(cls, key: Key) -> PublicKey:
        """The OpenSSH form of a key."""
        return cls.parse(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii"))

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).rstrip(b"=").decode("ascii")

    def check(self, signature: bytes, message: bytes) -> None:
        """Check one signature in SSH's own encoding.

        Raises:
            InvalidSignature, ValueError: It is not one of this key over this message.
        """
        reader = _Reader(signature)
        algorithm = reader.string()
        if algorithm not in (_RSA if self.algorithm == b"ssh-rsa" else (self.algorithm,)):
            raise ValueError(f"signature algorithm {algorithm[:60].decode('ascii', 'replace')!r}")
        raw = reader.string()
        if self.application:
            flags, counter = reader.take(1), reader.take(4)
            if not flags[0] & _USER_PRESENT:
                raise ValueError("nobody touched the hardware key")
            digest = hashlib.sha256
            message = digest(self.application).digest() + flags + counter + digest(message).digest()
        reader.end()
        match self.key:
            case ed25519.Ed25519PublicKey():
                self.key.verify(raw, message)
            case rsa.RSAPublicKey():
                self.key.verify(raw, message, padding.PKCS1v15(), _RSA[algorithm])
            case ec.EllipticCurvePublicKey():
                inner = _Reader(raw)
                r, s = inner.mpint(), inner.mpint()
                inner.end()
                hashed = hashes.SHA256() if self.application else _ECDSA[self.algorithm][2]
                self.key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashed))


def verify(message: bytes, armoured: str, namespace: str, listed: PublicKey) -> None:
    """Check an SSHSIG signature.

    Args:
        armoured: Text from `-----BEGIN SSH SIGNATURE-----` on; forms may have turned its line ends into blanks.
        namespace: What signatures are made for; one of another purpose never counts.
        listed: The key that must have signed.

    Raises:
        VerificationFailed: It does not verify; says why.
    """
    where = f"SSH signature, key {listed.fingerprint}"
    try:
        signature, signed = _opened(message, armoured, namespace, listed)
        listed.check(signature, signed)
    except InvalidSignature as error:
        raise VerificationFailed(
            "the signature is not over this statement", where=where,
            observed="a signature of this key over something else, or altered", expected="one over the statement",
        ) from error  # fmt: skip
    except ValueError as error:
        raise VerificationFailed(
            "the signature cannot count", where=where, observed=str(error),
            expected=f"an SSH signature in namespace {namespace!r} by that key",
        ) from error  # fmt: skip


def _opened(message: bytes, armoured: str, namespace: str, listed: PublicKey) -> tuple[bytes, bytes]:
    """The inner signature, and what it must be over; a ValueError says what else is wrong."""
    reader = _Reader(_dearmoured(armoured))
    if reader.take(len(MAGIC)) != MAGIC or reader.uint32() != VERSION:
        raise ValueError("no SSHSIG of version 1")
    key, found_namespace = reader.string(), reader.string()
    reader.string()  # reserved: to be ignored (PROTOCOL.sshsig, section 2)
    hashed, signature = reader.string(), reader.string()
    reader.end()
    if found_namespace != namespace.encode("ascii"):
        raise ValueError(f"it is for namespace {found_namespace[:60].decode('utf-8', 'replace')!r}")
    if hashed not in _HASHES:
        raise ValueError(f"hash algorithm {hashed[:60].decode('ascii', 'replace')!r}")
    if key != listed.blob:
        raise ValueError("it was made with another key")
    return signature, _to_be_signed(message, namespace, hashed)


def sign(message: bytes, namespace: str, key: PrivateKey) -> str:
    """Sign as `ssh-keygen -Y sign` does.

    Returns:
        The armoured signature.
    """
    public = PublicKey.of(key.public_key())
    data = _to_be_signed(message, namespace, b"sha512")
    match key:
        case ed25519.Ed25519PrivateKey():
            signature = _string(public.algorithm) + _string(key.sign(data))
        case rsa.RSAPrivateKey():
            signature = _string(b"rsa-sha2-512") + _string(key.sign(data, padding.PKCS1v15(), hashes.SHA512()))
        case ec.EllipticCurvePrivateKey():
            r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_ECDSA[public.algorithm][2])))
            signature = _string(public.algorithm) + _string(_mpint(r) + _mpint(s))
    parts = (public.blob, namespace.encode("ascii"), b"", b"sha512", signature)
    blob = MAGIC + struct.pack(">I", VERSION) + b"".join(map(_string, parts))
    text = base64.b64encode(blob).decode("ascii")
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])


def signer(armoured: str) -> PublicKey:
    """The key that an SSHSIG signature says it was made with; nothing is verified.

    Raises:
        VerificationFailed: It is no such signature.
    """
    try:
        reader = _Reader(_dearmoured(armoured))
        reader.take(len(MAGIC) + 4)
        return PublicKey.decode(reader.string())
    except ValueError as error:
        raise VerificationFailed(
            "the signature cannot count", where="SSH signature", observed=str(error), expected="an SSH signature"
        ) from error


def is_sshsig(text: str) -> bool:
    """Whether this looks like an armoured SSH signature."""
    return text.lstrip().startswith("-----BEGIN SSH SIGNATURE-----")


def _to_be_signed(message: bytes, namespace: str, hashed: bytes) -> bytes:
    digest = _HASHES[hashed](message).digest()
    return MAGIC + b"".join(map(_string, (namespace.encode("ascii"), b"", hashed, digest)))


def _dearmoured(text: str) -> bytes:
    found = _ARMOUR.fullmatch(text.strip())
    if found is None:
        raise ValueError("no text between BEGIN and END SSH SIGNATURE")
    try:
        return base64.b64decode("".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64 between BEGIN and END SSH SIGNATURE") from error


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _mpint(value: int) -> bytes:
    """RFC 4251 section 5: two's complement, so a leading zero byte where the top bit is set."""
    return _string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")


class _Reader:
    """Reads SSH's wire format (RFC 4251 section 5); anything out of order is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def take(self, length: int) -> bytes:
        if length > len(self._rest):
            raise ValueError("it ends too early")
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.uint32())

    def mpint(self) -> int:
        value = self.string()
        if value[:1] >= b"\x80":
            raise ValueError("a negative number")
        return int.from_bytes(value, "big")

    def end(self) -> None:
        if self._rest:
            raise ValueError("bytes are left over")
