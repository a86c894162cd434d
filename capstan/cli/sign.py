"""`capstan sign`: the one command for the machine that keeps a root and has no network.

It reads a request and a root's files, shows what would be signed, asks, and writes a chain. It imports nothing of
Kubernetes, Prefect or Azure, so that an installation without them does.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import Parameter
from rich.prompt import Confirm

from capstan.cli.output import Exit, Output, print_data, stderr, stdout
from capstan.errors import InvalidInput
from capstan.pki.bundle import Bundle
from capstan.pki.csr import Request, parse_request, sign_request
from capstan.pki.inspect import Certificate
from capstan.pki.keys import KeyAlgorithm, PrivateKey
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_root
from capstan.pki.rules import bundle_findings, require, root_findings
from capstan.pki.verify import GIVEN_ROOT, verify_issuer

if TYPE_CHECKING:
    from collections.abc import Callable

_HELP = "capstan sign --help"
_NEEDED = "--request, --root-cert and --root-key; or --new-root"
ROOT_CERT, ROOT_KEY = "root-cert.pem", "root-key.pem"
_ALGORITHMS = {"p256": KeyAlgorithm.P256, "rsa2048": KeyAlgorithm.RSA2048, "rsa4096": KeyAlgorithm.RSA4096}
_SHORTEST_PASSPHRASE = 12


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """Which request is answered, and by which root."""

    request: Annotated[tuple[Path, ...], Parameter(consume_multiple=False, negative=())] = ()
    """The request, a PEM file: `capstan rotate` says where it wrote it. Repeat it where a mesh has several clusters."""

    root_cert: Path | None = None
    """The root's certificate."""

    root_key: Path | None = None
    """The root's private key; its passphrase is asked for if it is encrypted."""

    out: Path | None = None
    """Where the chain goes, issuer first, then root; default: standard output. A file that is there is not replaced."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RootOptions:
    """How a new root is made."""

    new_root: Annotated[bool, Parameter(negative=())] = False
    """Make a root and its key here, instead of signing."""

    common_name: str = ""
    """Name of the new root, without its generation: ` G1`, ` G2`, ... is added."""

    known: Path | None = None
    """The roots in use, a PEM file: the new one is of the next generation, and no two have one name."""

    algorithm: Literal["p256", "rsa2048", "rsa4096"] = "p256"
    """Kind of the new root's key."""

    out_dir: Path | None = None
    """Where root-cert.pem and root-key.pem go; made if absent."""

    no_passphrase: Annotated[bool, Parameter(negative=())] = False
    """Leave the new root's key unencrypted, for a disk that is."""


def sign(
    options: RequestOptions = RequestOptions(),  # frozen: cyclopts fills the fields in
    root: RootOptions = RootOptions(),  # frozen, too
    *,
    validity: timedelta | None = None,
    passphrase_file: Path | None = None,
    yes: Annotated[bool, Parameter(alias="-y", negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Sign an issuer's request with a root that is kept offline, or make such a root (--new-root).

    Parameters
    ----------
    validity
        Life of the certificate, such as 365d; default: 365 days for an issuer, 3650 for a root. Never past the root's.
    passphrase_file
        First line is the passphrase of the root's key; default: it is asked for.
    yes
        Do not ask whether what is shown is to be signed.
    output
        How --new-root's result is printed: table, json or yaml.
    """
    now = datetime.now(UTC)
    secret = _passphrase_of(passphrase_file)
    if root.new_root:
        return _new_root(options, root, validity or timedelta(days=3650), secret, now, output)
    return _sign(options, validity or timedelta(days=365), secret, now, yes=yes)


# --- signing --------------------------------------------------------------------------------------------------------


def _sign(
    options: RequestOptions, validity: timedelta, secret: Callable[[bool], str], now: datetime, *, yes: bool
) -> int:
    # 1. What is asked for are requests that their keys have signed; who answers is a root that is fit to.
    if not options.request:
        _refuse("a request cannot be signed", "no --request", _NEEDED)
    certificate_file, key_file = _given("--root-cert", options.root_cert), _given("--root-key", options.root_key)
    requests = [parse_request(_read(file), str(file)) for file in options.request]
    certificate = Certificate.from_pem(_read(certificate_file), str(certificate_file))
    require(root_findings(certificate, now), str(certificate_file))
    if options.out is not None:
        _must_be_absent(options.out)
    # 2. Shown before the key is opened.
    for request in requests:
        _show(request, certificate, now + validity)
    if not (yes or _agreed()):
        stderr().print("nothing was signed")
        return Exit.FAILURE
    # 3. Signed, and found good by both verifiers, with nothing relaxed but what a root of others may lack.
    holder = Minted(certificate, _key(key_file, secret))
    issuers = [sign_request(holder, request, IssuerPolicy(validity=validity), now) for request in requests]
    for issuer in issuers:
        verify_issuer(issuer, [certificate], now, relax=GIVEN_ROOT)
    chain = Bundle.of(*issuers, certificate).pem(trailing_newline=True)
    if options.out is None:
        sys.stdout.write(chain)
        return Exit.OK
    _write_new(options.out, chain.encode(), 0o644)
    for issuer in issuers:
        stderr().print(f"signed: {issuer.common_name} {issuer.fingerprint[:16]} until {issuer.not_after:%Y-%m-%d}")
    stderr().print(f"take {options.out} back: capstan rotate --signed-chain {options.out.name}", soft_wrap=True)
    return Exit.OK


def _show(request: Request, root: Certificate, end: datetime) -> None:
    console = stderr()
    console.print("to be signed as an issuing CA that may sign leaves only (path length 0):")
    for label, value in (
        ("subject", request.subject),
        ("key", f"{request.key_algorithm}, SHA-256 {request.spki_sha256}"),
        ("request", f"SHA-256 {request.fingerprint}"),
        ("until", f"{end:%Y-%m-%d %H:%M:%S} UTC"),
        ("by root", f"{root.subject}, SHA-256 {root.fingerprint}, until {root.not_after:%Y-%m-%d}"),
    ):
        console.print(f"  {label:<9}{_printable(value)}", soft_wrap=True)
    if request.key_algorithm == "Ed25519":
        console.print(
            "  warning  Envoy verifies no leaf that an Ed25519 key has signed", style="yellow", soft_wrap=True
        )


def _agreed() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(
            "nothing was signed: nobody can be asked", observed="no terminal", expected="a yes to what is shown",
            next_command="the same command with --yes",
        )  # fmt: skip
    return Confirm.ask("Sign", console=stderr(), default=False)


# --- a new root -----------------------------------------------------------------------------------------------------


def _new_root(
    request: RequestOptions,
    options: RootOptions,
    validity: timedelta,
    secret: Callable[[bool], str],
    now: datetime,
    output: Output,
) -> int:
    if request != RequestOptions():
        _refuse("--new-root makes a root and signs nothing", "options of a request as well", "one of the two")
    if not options.common_name or options.out_dir is None:
        missing = "--common-name" if not options.common_name else "--out-dir"
        _refuse("a new root needs a name and a place", f"no {missing}", "--common-name NAME --out-dir DIR")
    directory = options.out_dir
    certificate_file, key_file = directory / ROOT_CERT, directory / ROOT_KEY
    for file in (certificate_file, key_file):
        _must_be_absent(file)
    known = Bundle.parse_lenient(_read(options.known), str(options.known)).certificates if options.known else ()
    policy = RootPolicy(options.common_name, validity, _ALGORITHMS[options.algorithm])
    sealed_with = "" if options.no_passphrase else secret(True)
    made = mint_root(policy, policy.next_generation(known), now)
    require((*root_findings(made.certificate, now), *bundle_findings([made.certificate, *known])), "the new root")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        _refuse("the directory cannot be made", str(error), "a directory that can be written to", str(directory))
    # The key first: a certificate without its key looks like a root and can never sign.
    _write_new(key_file, made.key.sealed_pem(sealed_with) if sealed_with else made.key.pem(), 0o600)
    _write_new(certificate_file, f"{made.certificate.pem()}\n".encode(), 0o644)
    _report(made.certificate, certificate_file, key_file, sealed=bool(sealed_with), output=output)
    return Exit.OK


def _report(root: Certificate, certificate_file: Path, key_file: Path, *, sealed: bool, output: Output) -> None:
    if output in (Output.JSON, Output.YAML):
        made: dict[str, Any] = {
            "subject": root.subject,
            "fingerprint": root.fingerprint,
            "notAfter": root.not_after.isoformat(),
            "certificate": str(certificate_file),
            "key": str(key_file),
            "sealed": sealed,
        }
        print_data(made, output)
        return
    for label, value in (
        ("root", root.subject),
        ("SHA-256", root.fingerprint),
        ("until", f"{root.not_after:%Y-%m-%d}"),
        ("cert", f"{certificate_file} (public: take it to the mesh)"),
        ("key", f"{key_file} ({'encrypted' if sealed else 'NOT encrypted'}: it stays here)"),
    ):
        stdout().print(f"{label:<9}{value}", soft_wrap=True)
    sign_with = f"--root-cert {certificate_file} --root-key {key_file}"
    stdout().print(f"\nnext: capstan sign --request FILE {sign_with} --out chain.pem", soft_wrap=True)


# --- files and passphrases ------------------------------------------------------------------------------------------


def _key(file: Path, secret: Callable[[bool], str]) -> PrivateKey:
    pem = _read(file)
    sealed = b"ENCRYPTED" in pem  # PKCS#8's label, and the header of OpenSSL's older form (RFC 1421 Proc-Type)
    return PrivateKey.unseal(pem, secret(False), str(file)) if sealed else PrivateKey.parse(pem, str(file))


def _passphrase_of(file: Path | None) -> Callable[[bool], str]:
    """Where a passphrase comes from; asked with True for a new key: typed twice, and not too short."""

    def secret(new: bool) -> str:
        if file is not None:
            given = _read(file).decode(errors="replace").partition("\n")[0].rstrip("\r")
        else:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                _refuse("the passphrase of the root's key cannot be asked for", "no terminal", "--passphrase-file FILE")
            given = getpass.getpass("Passphrase of the root's key: ", stream=sys.stderr)
            if new and getpass.getpass("The same again: ", stream=sys.stderr) != given:
                _refuse("the passphrases differ", "two different ones", "the same one twice")
        if new and len(given) < _SHORTEST_PASSPHRASE:
            expected = f"{_SHORTEST_PASSPHRASE} characters and more, or --no-passphrase"
            _refuse("the passphrase is too short", f"{len(given)} characters", expected)
        return given

    return secret


def _given(option: str, file: Path | None) -> Path:
    if file is None:
        _refuse("a request cannot be signed", f"no {option}", _NEEDED)
    return file


def _read(file: Path) -> bytes:
    try:
        return file.expanduser().read_bytes()
    except OSError as error:
        _refuse("a file cannot be read", error.strerror or str(error), "a readable file", str(file))


def _must_be_absent(file: Path) -> None:
    if file.exists() or file.is_symlink():
        _refuse("a file is there already, and is not replaced", "it exists", "a new file", str(file))


def _write_new(file: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
    except OSError as error:
        _refuse("a file cannot be written", error.strerror or str(error), "a new file that can be written", str(file))


def _refuse(what: str, observed: str, expected: str, where: str = "") -> NoReturn:
    raise InvalidInput(what, where=where, observed=observed, expected=expected, next_command=_HELP)


def _printable(text: str) -> str:
    """A request comes from elsewhere: nothing in it may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
