"""The canary bites: each form in which a key could leak is planted and found, and what is no key is left alone."""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import json
import logging
import lzma
import os
import pickle
import sqlite3
import subprocess
import urllib.parse
import zlib
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cloudpickle
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from capstan.pki.mint import RootPolicy, mint_root
from capstan.vaults import ROTATION_TAG, Material
from capstan.vaults.local import LocalVault
from tests.canary.scanner import scan, secrets_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

KEYS: dict[str, PrivateKeyTypes] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ec.generate_private_key(ec.SECP256R1())


def pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def traditional(key: PrivateKeyTypes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return pem(key)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def der(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def scalar(key: PrivateKeyTypes) -> bytes:
    return secrets_of(key)[0]


# Forms that are private keys by their own structure: found even if nobody knows the key.
STRUCTURED: dict[str, Callable[[PrivateKeyTypes], bytes]] = {
    "PEM": pem,
    "PEM, SEC 1 or PKCS#1": traditional,
    "PEM with Windows line ends": lambda k: pem(k).replace(b"\n", b"\r\n"),
    "PEM in a log line, escaped": lambda k: b"INFO made key " + repr(pem(k)).encode(),
    "PEM in JSON": lambda k: json.dumps({"a": [{"key": pem(k).decode()}]}).encode(),
    "PEM in JSON in JSON": lambda k: json.dumps({"body": json.dumps({"key": pem(k).decode()})}).encode(),
    "PEM in base64": lambda k: base64.b64encode(pem(k)),
    "PEM in base64, offset 1": lambda k: base64.b64encode(b"x" + pem(k)),
    "PEM in base64, offset 2": lambda k: base64.b64encode(b"xy" + pem(k)),
    "PEM in wrapped base64": lambda k: base64.encodebytes(b"k: " + pem(k)),
    "PEM in base64 in base64": lambda k: base64.b64encode(base64.b64encode(pem(k))),
    "PEM in UTF-16": lambda k: pem(k).decode().encode("utf-16"),
    "PEM in a URL": lambda k: b"https://x/?key=" + urllib.parse.quote(pem(k)).encode(),
    "PEM in a Secret": lambda k: json.dumps({"data": {"tls.key": base64.b64encode(pem(k)).decode()}}).encode(),
    "PEM in gzip": lambda k: gzip.compress(b"x" * 100 + pem(k)),
    "PEM in zlib in base64": lambda k: base64.b64encode(zlib.compress(pem(k))),
    "PEM in bzip2": lambda k: bz2.compress(pem(k)),
    "PEM in xz": lambda k: lzma.compress(pem(k)),
    "DER": der,
    "DER in the middle of something": lambda k: os.urandom(333) + der(k) + os.urandom(333),
    "DER, SEC 1 or PKCS#1": lambda k: base64.b64decode(b"".join(traditional(k).splitlines()[1:-1])),
    "DER in base64": lambda k: base64.b64encode(der(k)),
    "DER in base64 after a word": lambda k: b"token=AB" + base64.b64encode(der(k)),
    "DER in URL-safe base64 without padding": lambda k: base64.urlsafe_b64encode(der(k)).rstrip(b"="),
    "DER in JSON, wrapped": lambda k: json.dumps({"k": base64.encodebytes(der(k)).decode()}).encode(),
    "DER in hexadecimal": lambda k: der(k).hex().encode(),
    "DER in hexadecimal with colons": lambda k: der(k).hex(":").upper().encode(),
    "DER as a bytes literal": lambda k: repr(der(k)).encode(),
    "DER in a pickle": lambda k: pickle.dumps({"key": der(k)}),
    "PEM in a cloudpickled result": lambda k: json.dumps(
        {"data": base64.encodebytes(cloudpickle.dumps({"key": pem(k)})).decode()}
    ).encode(),
    "DER in a cloudpickled closure": lambda k: cloudpickle.dumps((lambda secret: lambda: secret)(der(k))),
}
# The bare number: found only because the key is known.
BARE: dict[str, Callable[[PrivateKeyTypes], bytes]] = {
    "raw": lambda k: b"xx" + scalar(k) + b"yy",
    "little-endian": lambda k: scalar(k)[::-1],
    "a pickled integer": lambda k: pickle.dumps(int.from_bytes(scalar(k))),
    "a decimal integer": lambda k: f"private_value={int.from_bytes(scalar(k))}".encode(),
    "hexadecimal": lambda k: scalar(k).hex().encode(),
    "hexadecimal as openssl prints it": lambda k: (
        b"priv:\n    " + scalar(k).hex(":").encode().replace(b":", b":\n    ", 1)
    ),
    "base64": lambda k: base64.b64encode(scalar(k)),
    "base64, offset 1": lambda k: base64.b64encode(b"x" + scalar(k) + b"tail"),
    "base64, offset 2": lambda k: base64.b64encode(b"xy" + scalar(k) + b"tail"),
    "a JSON Web Key": lambda k: json.dumps(
        {"kty": "EC", "d": base64.urlsafe_b64encode(scalar(k)).decode().rstrip("=")}
    ).encode(),
    "a bytes literal": lambda k: repr(scalar(k)).encode(),
}


@pytest.mark.parametrize("form", STRUCTURED)
@pytest.mark.parametrize("kind", KEYS)
def test_a_planted_key_nobody_told_about_is_found(tmp_path: Path, form: str, kind: str) -> None:
    (tmp_path / "file").write_bytes(STRUCTURED[form](KEYS[kind]))
    assert {finding.path.name for finding in scan([tmp_path])} == {"file"}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("form", STRUCTURED | BARE)
def test_a_planted_known_key_is_found_as_itself(tmp_path: Path, form: str, kind: str) -> None:
    (tmp_path / "file").write_bytes((STRUCTURED | BARE)[form](KEYS[kind]))
    assert any(finding.what.startswith("known key") for finding in scan([tmp_path], [OTHER, KEYS[kind]]))
    assert not any(finding.what.startswith("known key") for finding in scan([tmp_path], [OTHER]))


def test_a_pickled_integer_with_zeros_in_front_is_found(tmp_path: Path) -> None:
    key = ec.derive_private_key(0x12345678_9ABCDEF0_12345678_9ABCDEF0, ec.SECP256R1())
    (tmp_path / "file").write_bytes(BARE["a pickled integer"](key))
    assert any(finding.what.startswith("known key") for finding in scan([tmp_path], [key]))


def test_an_encrypted_key_is_a_private_key_too(tmp_path: Path) -> None:
    locked = KEYS["P-256"].private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    (tmp_path / "pem").write_bytes(
        KEYS["P-256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    )
    (tmp_path / "der").write_bytes(locked)
    assert {finding.path.name for finding in scan([tmp_path])} >= {"pem"}


def test_a_key_printed_by_openssl_is_found(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(KEYS["P-256"]))
    text = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key.pem", "-noout", "-text"], capture_output=True, check=True
    ).stdout
    (tmp_path / "key.pem").unlink()
    (tmp_path / "log").write_bytes(text)
    assert scan([tmp_path], [KEYS["P-256"]])


def _database(path: Path, value: bytes | str, *, wal: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute('CREATE TABLE "task ""runs""" (id INTEGER PRIMARY KEY, data)')
    connection.execute("CREATE TABLE empty (x)")
    connection.execute('INSERT INTO "task ""runs""" (data) VALUES (?)', (value,))
    connection.commit()
    return connection


@pytest.mark.parametrize("kind", ["text", "blob"])
@pytest.mark.parametrize("padding", [0, 3900, 4000, 4050, 60_000])
def test_a_key_in_a_database_is_found_wherever_its_pages_cut_it(tmp_path: Path, padding: int, kind: str) -> None:
    value = b"x" * padding + base64.b64encode(cloudpickle.dumps({"k": pem(KEYS["P-256"])}))
    with closing(_database(tmp_path / "prefect.db", value if kind == "blob" else value.decode(), wal=False)):
        pass
    assert any(f.what.startswith("known key") for f in scan([tmp_path], [KEYS["P-256"]]))
    assert scan([tmp_path])


def test_a_key_still_in_the_write_ahead_log_is_found(tmp_path: Path) -> None:
    value = "x" * 9000 + pem(KEYS["P-256"]).decode()
    with closing(_database(tmp_path / "prefect.db", value, wal=True)):
        assert (tmp_path / "prefect.db-wal").stat().st_size > 9000
        names = {finding.path.name for finding in scan([tmp_path], [KEYS["P-256"]])}
        assert "prefect.db" in names
        assert "prefect.db-wal" in names


def test_a_deleted_row_that_was_not_vacuumed_is_found(tmp_path: Path) -> None:
    with closing(_database(tmp_path / "prefect.db", pem(KEYS["P-256"]).decode(), wal=False)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute('DELETE FROM "task ""runs"""')
        connection.commit()
    assert scan([tmp_path / "prefect.db"], [KEYS["P-256"]])


def test_hidden_and_nested_files_are_searched_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in" / ".a" / "b").mkdir(parents=True)
    (tmp_path / "in" / ".a" / "b" / ".c").write_bytes(pem(OTHER))
    (tmp_path / "out").write_bytes(pem(OTHER))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert {finding.path.name for finding in scan([tmp_path / "in"])} == {".c"}


def test_the_vault_can_be_excluded_and_needs_not_be(tmp_path: Path) -> None:
    made: list[Material] = []

    def mint() -> Material:
        made.append(Material.of(mint_root(RootPolicy(), 1, datetime(2026, 3, 1, tzinfo=UTC))))
        return made[-1]

    LocalVault(tmp_path / "vault").ensure("root", mint, {ROTATION_TAG: "r"})
    assert scan([tmp_path], [made[0].unsafe_private_key_pem()]) == []
    (tmp_path / "vault" / "plain").write_text(made[0].unsafe_private_key_pem())
    assert scan([tmp_path])
    assert scan([tmp_path], exclude=[tmp_path / "vault"]) == []


def test_what_is_no_private_key_is_left_alone(tmp_path: Path) -> None:
    minted = mint_root(RootPolicy(), 1, datetime(2026, 3, 1, tzinfo=UTC))
    certificate = minted.certificate.pem().encode()
    public = [
        key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        for key in KEYS.values()
        for encoding in (Encoding.PEM, Encoding.DER)
    ]
    harmless = [certificate, base64.b64encode(certificate), minted.certificate.der, *public]
    harmless += [hashlib.sha256(b"x").hexdigest().encode(), repr(minted).encode(), os.urandom(200_000)]
    harmless += [
        base64.b64encode(os.urandom(50_000)),
        gzip.compress(certificate),
        b"the private key stays in the vault",
    ]
    harmless += [json.dumps({"event": "key minted", "fingerprint": minted.certificate.fingerprint}).encode()]
    for number, content in enumerate(harmless):
        (tmp_path / str(number)).write_bytes(content)
    with closing(_database(tmp_path / "prefect.db", certificate.decode() * 9, wal=False)):
        pass
    assert scan([tmp_path], [*KEYS.values(), minted.key.pem()]) == []


def test_a_finding_says_where_and_how_without_quoting_the_key(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" + base64.b64encode(pem(OTHER)))
    text = " ".join(str(finding) for finding in scan([tmp_path], [OTHER]))
    assert "log: PEM private key in base64" in text
    assert scalar(OTHER).hex() not in text
    assert pem(OTHER).decode().splitlines()[1] not in text


def test_a_key_in_a_traceback_with_local_variables_is_found(tmp_path: Path) -> None:
    """What a logger that shows locals writes, had the key been a plain string."""
    logger = logging.getLogger("canary")
    handler = logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    try:
        logger.error("failed with %r", {"key_pem": pem(OTHER).decode()})
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert scan([tmp_path], [OTHER])
