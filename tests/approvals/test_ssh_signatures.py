"""SSH signatures: the real ssh-keygen and we agree on what is one, for every kind of key; nothing else passes."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.approvals import sshsig
from capstan.approvals.signing import NAMESPACE, sign
from capstan.approvals.sshsig import PublicKey
from capstan.errors import VerificationFailed
from tests.approvals.people import QUESTION, person, public_line

if TYPE_CHECKING:
    from pathlib import Path

    from capstan.approvals.sshsig import PrivateKey

MESSAGE = QUESTION.statement(person().answer()).text().encode()
KINDS = ["ed25519", "ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa-2048"]
every_kind = pytest.mark.parametrize("kind", KINDS)
needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def key_file(directory: Path, key: PrivateKey) -> Path:
    """The key as ssh-keygen writes it, with its public half beside it."""
    path = directory / "id"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    path.with_suffix(".pub").write_text(public_line(key) + "\n")
    return path


def by_hand(key: Path, message: Path, *more: str) -> str:
    """What a person does: `ssh-keygen -Y sign -f KEY -n capstan-approval FILE` writes FILE.sig."""
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, *more, str(message)],
        check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return message.with_name(message.name + ".sig").read_text()


def ssh_keygen_verifies(directory: Path, public: str, signature: str) -> None:
    """The real one takes this signature over MESSAGE."""
    (directory / "sig").write_text(signature)
    (directory / "allowed").write_text(f"ada {public}\n")
    files = ["-f", str(directory / "allowed"), "-s", str(directory / "sig")]
    done = subprocess.run(
        ["ssh-keygen", "-Y", "verify", *files, "-I", "ada", "-n", NAMESPACE],
        input=MESSAGE, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@every_kind
def test_what_we_sign_we_verify(kind: str, every_key: dict[str, PrivateKey]) -> None:
    key = every_key[kind]
    signature = sshsig.sign(MESSAGE, NAMESPACE, key)
    sshsig.verify(MESSAGE, signature, NAMESPACE, PublicKey.of(key.public_key()))
    assert sshsig.signer(signature) == PublicKey.of(key.public_key())


@needs_ssh_keygen
@every_kind
def test_ssh_keygen_verifies_what_we_sign(kind: str, every_key: dict[str, PrivateKey], tmp_path: Path) -> None:
    key = every_key[kind]
    ssh_keygen_verifies(tmp_path, public_line(key), sshsig.sign(MESSAGE, NAMESPACE, key))


@needs_ssh_keygen
@every_kind
@pytest.mark.parametrize("hashed", ["sha256", "sha512"])
def test_we_verify_what_ssh_keygen_signs_by_hand(
    kind: str, hashed: str, every_key: dict[str, PrivateKey], tmp_path: Path
) -> None:
    key = every_key[kind]
    statement = tmp_path / "statement.json"
    statement.write_bytes(MESSAGE)
    signature = by_hand(key_file(tmp_path, key), statement, "-O", f"hashalg={hashed}")
    listed = PublicKey.parse((tmp_path / "id.pub").read_text())
    sshsig.verify(MESSAGE, signature, NAMESPACE, listed)
    # A form may have made one line of it.
    sshsig.verify(MESSAGE, " ".join(signature.split("\n")), NAMESPACE, listed)
    with pytest.raises(VerificationFailed):
        sshsig.verify(MESSAGE + b" ", signature, NAMESPACE, listed)


@needs_ssh_keygen
def test_a_fingerprint_is_the_one_that_ssh_keygen_prints(tmp_path: Path) -> None:
    path = key_file(tmp_path, ed25519.Ed25519PrivateKey.generate())
    printed = subprocess.run(["ssh-keygen", "-l", "-f", path], capture_output=True, text=True, check=True).stdout
    assert PublicKey.parse(path.with_suffix(".pub").read_text()).fingerprint == printed.split()[1]


@every_kind
def test_a_signature_over_anything_else_does_not_verify(kind: str, every_key: dict[str, PrivateKey]) -> None:
    key = every_key[kind]
    listed = PublicKey.of(key.public_key())
    with pytest.raises(VerificationFailed, match="not over this statement"):
        sshsig.verify(MESSAGE, sshsig.sign(MESSAGE + b"\n", NAMESPACE, key), NAMESPACE, listed)


def test_a_signature_of_another_namespace_does_not_verify() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(VerificationFailed) as raised:
        sshsig.verify(MESSAGE, sshsig.sign(MESSAGE, "git", key), NAMESPACE, PublicKey.of(key.public_key()))
    assert raised.value.observed == "it is for namespace 'git'"


def packed(
    key: ed25519.Ed25519PrivateKey,
    *,
    magic: bytes = b"SSHSIG",
    version: int = 1,
    hashed: bytes = b"sha512",
    algorithm: bytes = b"ssh-ed25519",
    tail: bytes = b"",
) -> str:
    """An SSHSIG blob of ours with one thing wrong."""

    def string(value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + value

    digest = hashlib.new(hashed.decode(), MESSAGE).digest()
    data = b"SSHSIG" + b"".join(map(string, (NAMESPACE.encode(), b"", hashed, digest)))
    inner = string(algorithm) + string(key.sign(data))
    blob = PublicKey.of(key.public_key()).blob
    whole = magic + struct.pack(">I", version) + b"".join(map(string, (blob, NAMESPACE.encode(), b"", hashed, inner)))
    text = base64.b64encode(whole + tail).decode()
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"


@pytest.mark.parametrize(
    ("wrong", "observed"),
    [
        ({"magic": b"SSHSIX"}, "no SSHSIG of version 1"),
        ({"version": 2}, "no SSHSIG of version 1"),
        ({"hashed": b"sha1"}, "hash algorithm 'sha1'"),
        ({"hashed": b"md5"}, "hash algorithm 'md5'"),
        ({"algorithm": b"ssh-rsa"}, "signature algorithm 'ssh-rsa'"),
        ({"tail": b"more"}, "bytes are left over"),
    ],
)
def test_a_signature_that_breaks_the_format_does_not_verify(wrong: dict[str, bytes | int], observed: str) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    listed = PublicKey.of(key.public_key())
    sshsig.verify(MESSAGE, packed(key), NAMESPACE, listed)
    with pytest.raises(VerificationFailed) as raised:
        sshsig.verify(MESSAGE, packed(key, **wrong), NAMESPACE, listed)
    assert raised.value.observed == observed


KEY = ed25519.Ed25519PrivateKey.generate()
GOOD = base64.b64decode("".join(sshsig.sign(MESSAGE, NAMESPACE, KEY).split("\n")[1:-2]))


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_leaves_a_signature_good(place: int, bit: int) -> None:
    flipped = bytearray(GOOD)
    flipped[place] ^= 1 << bit
    text = base64.b64encode(bytes(flipped)).decode()
    with pytest.raises(VerificationFailed):
        sshsig.verify(
            MESSAGE, f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----", NAMESPACE,
            PublicKey.of(KEY.public_key()),
        )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=400), st.binary(max_size=300).map(lambda b: base64.b64encode(b).decode())))
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    for armoured in (text, f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----"):
        with pytest.raises(VerificationFailed):
            sshsig.verify(MESSAGE, armoured, NAMESPACE, PublicKey.of(KEY.public_key()))


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def touched(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, flags: int = 1) -> tuple[str, str]:
    """What a FIDO key answers (PROTOCOL.u2f): its public line, and a signature over MESSAGE."""
    application = b"ssh:"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        kind = b"sk-ssh-ed25519@openssh.com"
        blob = string(kind) + string(key.public_key().public_bytes_raw()) + string(application)
    else:
        kind = b"sk-ecdsa-sha2-nistp256@openssh.com"
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        blob = string(kind) + string(b"nistp256") + string(point) + string(application)
    data = b"SSHSIG" + b"".join(map(string, (NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(MESSAGE).digest())))
    counter = struct.pack(">BI", flags, 7)
    signed = hashlib.sha256(application).digest() + counter + hashlib.sha256(data).digest()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.sign(signed)
    else:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        raw = b"".join(string(n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in (r, s))
    inner = string(kind) + string(raw) + counter
    whole = b"SSHSIG" + struct.pack(">I", 1)
    whole += b"".join(map(string, (blob, NAMESPACE.encode(), b"", b"sha512", inner)))
    armoured = "\n".join(
        ["-----BEGIN SSH SIGNATURE-----", base64.b64encode(whole).decode(), "-----END SSH SIGNATURE-----", ""]
    )
    return f"{kind.decode()} {base64.b64encode(blob).decode()} ada@key", armoured


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256"])
def test_a_hardware_key_counts_when_it_was_touched(kind: str, every_key: dict[str, PrivateKey], tmp_path: Path) -> None:
    key = every_key[kind]
    line, signature = touched(key)
    listed = PublicKey.parse(line)
    sshsig.verify(MESSAGE, signature, NAMESPACE, listed)
    with pytest.raises(VerificationFailed):
        sshsig.verify(MESSAGE + b" ", signature, NAMESPACE, listed)
    _, untouched = touched(key, flags=0)
    with pytest.raises(VerificationFailed) as raised:
        sshsig.verify(MESSAGE, untouched, NAMESPACE, listed)
    assert raised.value.observed == "nobody touched the hardware key"


@needs_ssh_keygen
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256"])
def test_ssh_keygen_takes_the_same_answer_of_a_hardware_key(
    kind: str, every_key: dict[str, PrivateKey], tmp_path: Path
) -> None:
    ssh_keygen_verifies(tmp_path, *touched(every_key[kind]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not one line"),
        ("ssh-ed25519", "not one line"),
        ("ssh-ed25519 not*base64", "no base64"),
        ("ssh-dss " + base64.b64encode(string(b"ssh-dss")).decode(), "'ssh-dss' is not supported"),
        ("ssh-ed25519-cert-v01@openssh.com " + base64.b64encode(string(b"ssh-ed25519-cert-v01@openssh.com")).decode(),
         "not supported"),
        ("ssh-rsa " + public_line(KEY).split()[1], "the line says 'ssh-rsa'"),
        ("ssh-ed25519 " + base64.b64encode(PublicKey.of(KEY.public_key()).blob + b"x").decode(), "left over"),
        ("ssh-ed25519 " + base64.b64encode(PublicKey.of(KEY.public_key()).blob[:-1]).decode(), "too early"),
        (public_line(KEY) + "\n" + public_line(KEY), "not one line"),
    ],
    # Named one by one: the key is another one in each process, and a test's name must not be.
    ids=["empty", "no key", "no base64", "dss", "certificate", "another kind", "too long", "too short", "two lines"],
)  # fmt: skip
def test_a_line_that_is_no_usable_public_key_says_why(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PublicKey.parse(line)


@needs_ssh_keygen
def test_a_key_that_only_an_agent_holds_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    ada = person("ada")
    path = key_file(tmp_path, ada.key)
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", str(path)], check=True, env={**os.environ}, stdin=subprocess.DEVNULL)
        path.unlink()
        statement = QUESTION.statement(ada.answer())
        signature = sign(statement, path.with_suffix(".pub"))
    finally:
        agent.terminate()
        agent.wait()
    sshsig.verify(statement.text().encode(), signature, NAMESPACE, PublicKey.of(ada.key.public_key()))
