"""Finds private keys where none may be: in any file, in the forms in which keys leak in practice.

`scan(paths, known_keys)` looks for two things. First, for the secret numbers of the keys given (an EC scalar, an
Ed25519 seed, RSA's d and primes), which finds a leak however it is wrapped. Second, for anything that is a private key
by its own structure (PEM, PKCS#8, PKCS#1, SEC 1), which finds keys nobody told it about. Both are sought in the bytes
as they are and in what they contain: base64, hexadecimal, escapes, compression, SQLite values and write-ahead logs, in
each other.

A finding never quotes the key.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import lzma
import re
import shutil
import sqlite3
import tempfile
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_DEPTH = 8  # a pickle of PEM in base64, compressed, in base64, in JSON in a database is six
_UNPACKED_LIMIT = 64 * 2**20
_PEM_MARKERS = (b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----")
# SEQUENCE { INTEGER 0 or 1, then SEQUENCE (PKCS#8), OCTET STRING (SEC 1) or INTEGER (PKCS#1).
_DER_KEY = re.compile(rb"\x30(?:[\x20-\x7f]|\x81.|\x82..)\x02\x01[\x00\x01][\x30\x04\x02]", re.DOTALL)
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]{40,}")  # longer than a UUID, shorter than 32 bytes
_HEX_RUN = re.compile(rb"[0-9A-Fa-f]{60,}")
_HEX_PAIRS = re.compile(rb"(?:[0-9A-Fa-f]{2}:){20,}[0-9A-Fa-f]{2}")
_TEXT_RUN = re.compile(rb"[\t\r\n\x20-\x7e]{40,}")
_UTF16_RUN = re.compile(rb"(?:[\t\r\n\x20-\x7e]\0){16,}")
_ESCAPED = re.compile(rb"\\[nrxu]")
_ESCAPES = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|u00([0-9A-Fa-f]{2})|([nrt/\"'\\]))")
_PLAIN_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_SPACE = re.compile(rb"\s+")
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|BZh[1-9]|\xfd7zXZ\x00")
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_APART = b"\xff" * 8  # between things decoded from different places, so that they do not run into each other


@dataclass(frozen=True, order=True)
class Finding:
    """A private key in a place where none may be.

    Attributes:
        path: The file.
        what: `known key <first digits of its public key's hash>`, `PEM private key` or `DER private key`.
        how: How it was wrapped, outermost first; empty if it lay open.
    """

    path: Path
    what: str
    how: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" + (f" in {self.how}" if self.how else "")


def scan(
    paths: Iterable[Path], known_keys: Iterable[PrivateKeyTypes | bytes | str] = (), *, exclude: Iterable[Path] = ()
) -> list[Finding]:
    """Everything that is or holds a private key under `paths`, one finding per file, key and wrapping.

    Args:
        paths: Files and directories (searched to the bottom, hidden files included, links not followed).
        known_keys: Keys to look for by their secret numbers: objects, or PEM.
        exclude: Files and directories that may hold keys: the vault.
    """
    needles = Needles(known_keys)
    excluded = [path.resolve() for path in exclude]
    found: set[Finding] = set()
    for file in _files(paths):
        if any(file.resolve().is_relative_to(path) for path in excluded):
            continue
        for what, how in _in_file(file, needles):
            found.add(Finding(file, what, how))
    return sorted(found)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        candidates = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in candidates if file.is_file() and not file.is_symlink())


def _in_file(file: Path, needles: Needles) -> Iterator[tuple[str, str]]:
    try:
        data = file.read_bytes()
    except FileNotFoundError:  # a running system removes files; gone is clean
        return
    yield from in_bytes(data, needles)
    if data.startswith(b"SQLite format 3\0"):
        for place, value in _sqlite_values(file):
            for what, how in in_bytes(value, needles):
                yield what, f"{place} {how}".strip()


def _sqlite_values(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of every table, the ones still in the write-ahead log included.

    The raw pages are searched as well, for what was deleted; but a long value lies there in pieces.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        for suffix in ("", "-wal", "-journal"):
            source = file.with_name(file.name + suffix)
            if source.exists():
                shutil.copy(source, f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as connection:
            connection.text_factory = bytes
            try:
                names = connection.execute("SELECT name FROM sqlite_schema WHERE type='table'").fetchall()
            except sqlite3.DatabaseError:  # not a database after all, or being written: the raw search has to do
                return
            for table in (row[0].decode() for row in names):
                quoted = table.replace('"', '""')
                with suppress(sqlite3.DatabaseError):  # virtual tables whose module is not loaded
                    rows = connection.execute(f'SELECT * FROM "{quoted}"')
                    while some := rows.fetchmany(5000):
                        values = (value for row in some for value in row if isinstance(value, bytes))
                        yield f"table {table}", _APART.join(values)


class Needles:
    """The secret numbers of the known keys, in each form that can be sought directly."""

    def __init__(self, keys: Iterable[PrivateKeyTypes | bytes | str]) -> None:
        self.forms: list[tuple[bytes, str]] = []
        for given in keys:
            key = _loaded(given)
            public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            what = f"known key {binascii.crc32(public):08x}"
            for secret in secrets_of(key):
                # Little-endian, without zeros at its end, is how pickle stores a large int; decimal is how anything
                # prints one.
                backwards = secret.lstrip(b"\0")[::-1]
                for form in (secret, backwards, str(int.from_bytes(secret)).encode(), secret.hex().encode()):
                    self.forms.append((form, what))
                self.forms.append((secret.hex().upper().encode(), what))
                self.forms += [(form, what) for form in base64_forms(secret)]


def secrets_of(key: PrivateKeyTypes) -> Sequence[bytes]:
    """The numbers that must not get out, big-endian.

    RSA's are given without a leading part: whoever has any one of them has the key.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return [key.private_numbers().private_value.to_bytes((key.curve.key_size + 7) // 8)]
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        return [number.to_bytes((number.bit_length() + 7) // 8) for number in (numbers.d, numbers.p, numbers.q)]
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return [key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())]
    raise TypeError(type(key).__name__)


def base64_forms(secret: bytes) -> Sequence[bytes]:
    """What base64 text contains if `secret` begins at any of the three byte offsets in what was encoded."""
    forms = []
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret)
        whole = encoded[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]  # characters of `secret` bits only
        forms += [whole, whole.translate(bytes.maketrans(b"+/", b"-_"))]
    return forms


def in_bytes(data: bytes, needles: Needles) -> Iterator[tuple[str, str]]:
    """What is found in `data`, and how it was wrapped."""
    yield from _search(data, needles, "", _DEPTH, set())


def _search(data: bytes, needles: Needles, how: str, depth: int, seen: set[bytes]) -> Iterator[tuple[str, str]]:
    if len(data) < 16 or data in seen:
        return
    seen.add(data)
    for form, what in needles.forms:
        if form in data:
            yield what, how
    for marker in _PEM_MARKERS:
        if marker in data:
            yield "PEM private key", how
    if any(_is_key(data[match.start() :]) for match in _DER_KEY.finditer(data)):
        yield "DER private key", how
    if depth > 0:
        for step, inner in _unwrapped(data):
            yield from _search(inner, needles, f"{how} > {step}" if how else step, depth - 1, seen)


def _is_key(data: bytes) -> bool:
    """Whether a private key in DER begins here; what follows it is cut off by its own length."""
    first = data[1]
    size = 2 + first if first < 0x80 else 2 + (first & 0x7F) + int.from_bytes(data[2 : 2 + (first & 0x7F)])
    try:
        load_der_private_key(data[:size], password=None)
    except (ValueError, UnsupportedAlgorithm):
        return False
    except TypeError:  # encrypted
        return True
    return True


def _unwrapped(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What `data` may contain in another form."""
    if b"\0" in data:
        yield "UTF-16", _APART.join(run.replace(b"\0", b"") for run in _UTF16_RUN.findall(data))
    # What follows is written in text only, and most of what was decoded is none.
    text = _APART.join(_TEXT_RUN.findall(data))
    if _ESCAPED.search(text):
        yield "escapes", _ESCAPES.sub(_unescaped, text)
    if b"%2" in text or b"%0A" in text:
        yield "URL encoding", unquote_to_bytes(text)
    # Base64 and hexadecimal are wrapped at any width; escaped newlines have become real ones a level above.
    for joined in dict.fromkeys((text, _SPACE.sub(b"", text))):
        found = _BASE64_RUN.findall(joined)
        digits = [hexadecimal for run in found for hexadecimal in _HEX_RUN.findall(run)]
        digits += [run.replace(b":", b"") for run in _HEX_PAIRS.findall(joined)]
        for start in range(2):
            yield (
                "hexadecimal",
                _APART.join(binascii.unhexlify(run[start : len(run) - (len(run) - start) % 2]) for run in digits),
            )
        # A run may begin with characters that are not part of it, so every alignment is tried; all runs at once, apart.
        runs = [run.translate(_STANDARD_ALPHABET) for run in found]
        for start in range(4):
            yield "base64", _APART.join(_decoded(run[start:]) for run in runs)
    for match in _COMPRESSED.finditer(data):
        unpacked = _unpacked(data[match.start() :])
        if unpacked:
            yield "compression", unpacked


def _decoded(run: bytes) -> bytes:
    """Base64 without its padding; a last character that makes no byte is dropped."""
    whole = run[: len(run) - (len(run) % 4 == 1)]
    return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4))


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1] or match[2]:
        return bytes.fromhex((match[1] or match[2]).decode())
    return _PLAIN_ESCAPES.get(match[3], match[3])


def _unpacked(data: bytes) -> bytes:
    try:
        if data.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(data, _UNPACKED_LIMIT)
        if data.startswith(b"\xfd7zXZ"):
            return lzma.LZMADecompressor().decompress(data, _UNPACKED_LIMIT)
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(data, _UNPACKED_LIMIT)
    except (OSError, ValueError, lzma.LZMAError, zlib.error, EOFError):
        return b""


def _loaded(given: PrivateKeyTypes | bytes | str) -> PrivateKeyTypes:
    if isinstance(given, str):
        given = given.encode()
    return load_pem_private_key(given, password=None) if isinstance(given, bytes) else given
