"""The plug-in CA: files in /etc/cacerts, read at start and, where the version can, again when they change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod.bundle import Bundle, BundleError
from infra.lab.istio.istiod.leaves import SignerExpiredError
from infra.lab.istio.istiod.versions import RootChange
from infra.lab.linkerd import gopem

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.settings import Settings
    from infra.lab.istio.istiod.versions import Rules

DEBOUNCE_SECONDS = 0.1
POLL_SECONDS = 0.05
ISTIO_GENERATED = "istio-generated"


class StartError(Exception):
    """istiod cannot start; the text is what follows "failed to create CA: "."""


@dataclass(frozen=True)
class CaFiles:
    """Which files hold the CA, by name in the directory.

    Attributes:
        directory: Where they are on this machine.
        shown: The directory as istiod prints it.
    """

    directory: Path
    shown: str
    root: str
    chain: tuple[str, ...]
    cert: str
    key: str
    crl: str | None

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.directory / name).exists()

    def read(self, name: str) -> bytes:
        """The file's bytes; raises BundleError in Go's words if it is not there."""
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError as error:
            raise BundleError(f"open {self.shown}/{name}: no such file or directory") from error

    def read_root(self, *, forgotten: bool) -> bytes:
        """The roots; with `forgotten`, a missing file has lost its name in the message (up to 1.26.0 at start)."""
        if forgotten and not self.exists(self.root):
            raise BundleError("open : no such file or directory")
        return self.read(self.root)

    def load(self, rules: Rules, now: datetime, *, starting: bool = False) -> Bundle:
        """Read and check everything; raises BundleError."""
        cert, key = self.read(self.cert), self.read(self.key)
        chain = b"".join(self.read(name) for name in self.chain)
        root = self.read_root(forgotten=starting and not rules.complete_set)
        crl = b"" if self.crl is None else self.read(self.crl)
        return bundles.verified(cert, key, chain, root, crl, rules=rules, now=now)


def detect(settings: Settings, directory: Path, out: Log) -> CaFiles:
    """Which of the two formats the directory has: tls.crt decides."""
    if settings.rules.tls_format and (directory / "tls.crt").exists():
        out.info("Using kubernetes.io/tls secret type for signing ca files")
        return CaFiles(directory, settings.ca_directory, "ca.crt", ("tls.crt", "ca.crt"), "tls.crt", "tls.key", None)
    if settings.rules.tls_format:
        out.info("Using istiod file format for signing ca files")
    crl = None
    if settings.rules.crl and (directory / "ca-crl.pem").exists():
        out.info("Detected CRL file")
        crl = "ca-crl.pem"
    return CaFiles(
        directory, settings.ca_directory, "root-cert.pem", ("cert-chain.pem",), "ca-cert.pem", "ca-key.pem", crl
    )


def plugged_in(files: CaFiles, rules: Rules) -> bool:
    """Whether the files are the CA, or istiod is to sign for itself.

    Raises:
        StartError: Only a part of them is there, and the version refuses that.
    """
    if not rules.complete_set:
        return files.exists(files.key)  # only the key decides; what else is missing fails later
    present = [
        files.exists(files.key),
        files.exists(files.cert),
        files.exists(files.root),
        any(files.exists(name) for name in files.chain),
    ]
    if any(present) and not all(present):
        raise StartError("failed to create an istiod CA: incomplete signing CA bundle detected")
    return all(present)


def start(files: CaFiles, settings: Settings, out: Log, now: datetime) -> Bundle:
    """The bundle at start, which also has to be a CA.

    Raises:
        StartError: In istiod's words.
    """
    out.info("Use local CA certificate")
    try:
        bundle = files.load(settings.rules, now, starting=True)
    except BundleError as error:
        text = f"failed to create an istiod CA: failed to create CA KeyCertBundle ({error})"
        raise StartError(text) from error
    if not bundles.is_authority(bundle.signer):
        raise StartError("failed to create an istiod CA: certificate is not authorized to sign other certificates")
    return bundle


def accepts(current: bytes, new: bytes, rule: RootChange) -> bool:
    """Whether a running istiod takes `new` for its roots in place of `current`, byte for byte different ones.

    Both are texts of root-cert.pem. An empty text is contained in every other one under the rule for bytes, and in
    none under the rule for certificates.
    """
    if rule is RootChange.BYTES:
        return current in new or new in current
    if rule is RootChange.CERTIFICATES:
        # pem.Decode without parsing: a block that is no certificate inside still counts, by its bytes.
        first, second = _ders(current), _ders(new)
        return bool(first and second) and (first <= second or second <= first)
    return False


def _ders(pem: bytes) -> frozenset[bytes]:
    found: set[bytes] = set()
    while True:
        block, pem = gopem.decode(pem)
        if block is None:
            return frozenset(found)
        if block.type == b"CERTIFICATE":
            found.add(block.der)


class Reloader:
    """Follows the directory of a running istiod (fsnotify there, a look twenty times a second here)."""

    def __init__(
        self, authority: Authority, directory: Path, out: Log, clock: Callable[[], datetime], *, dead: bool = False
    ) -> None:
        self._authority = authority
        self._settings = authority.settings
        self._directory = directory
        self._out = out
        self._clock = clock
        self._dead = dead
        self._seen = _state(directory)

    async def run(self) -> None:
        """Reload at every change, for ever."""
        while not self._dead:
            await asyncio.sleep(POLL_SECONDS)
            state = _state(self._directory)
            if not state.items() - self._seen.items():  # a removal alone is no event that istiod looks at
                self._seen = state
                continue
            if delay := self._settings.reload_delay.total_seconds():
                await asyncio.sleep(delay)
            await asyncio.sleep(DEBOUNCE_SECONDS)
            self._seen = _state(self._directory)
            await self.reload()

    async def reload(self) -> None:
        """One event: read, judge, and take or refuse, with istiod's lines (handleEvent)."""
        rules, out, authority = self._settings.rules, self._out, self._authority
        out.info("Update Istiod cacerts")
        files = detect(self._settings, self._directory, out)
        try:
            roots = files.read(files.root)
        except BundleError as error:
            out.error(f"failed reading root-cert.pem: {error}")
            return
        if not self._root_accepted(roots):
            return
        before = authority.bundle
        new_crl = False
        if files.crl is not None:
            new_crl = files.read(files.crl) != before.crl_pem
            if new_crl:
                out.info("Updating CRL data")
        try:
            bundle = files.load(rules, self._clock())
        except BundleError as error:
            out.error(f"Failed to update new Plug-in CA certs: {error}")
            return
        authority.replace(bundle)
        if rules.records_expiry_on_reload:
            authority.record_expiry()
        if new_crl:
            out.info("Istiod has detected the newly added CRL file and updated its CRL accordingly")
        try:
            await renew(authority, out)
        except SignerExpiredError as error:
            out.error(f"Failed generating plugged-in istiod key cert: {error}")
            return
        out.info("Istiod has detected the newly added intermediate CA and updated its key and certs accordingly")

    def _root_accepted(self, roots: bytes) -> bool:
        current, rule, out = self._authority.bundle.root_pem, self._settings.rules.root_change, self._out
        if roots == current:
            return True
        if rule is RootChange.NEVER:
            out.info("Updating new ROOT-CA not supported")
            return False
        if rule is RootChange.DISABLED:
            out.warn("Multi root is disabled, updating new ROOT-CA not supported")
            return False
        if accepts(current, roots, rule):
            out.info("Updating new ROOT-CA")
            return True
        out.warn("Updating new ROOT-CA not supported")
        return False


async def renew(authority: Authority, out: Log) -> None:
    """A new serving certificate and, where it is on, a push of the bundle (updateRootCertAndGenKeyCert)."""
    rules = authority.settings.rules
    if rules.version >= (1, 21, 0):
        out.info("update root cert and generate new dns certs")
    served = await authority.serving()
    if rules.pushes_bundles:
        if rules.version >= (1, 21, 0):
            out.info("Update trust anchor with new root cert")
        authority.push()
    authority.announce(served)


def _state(directory: Path) -> dict[str, tuple[int, int, int]]:
    """What the directory's own entries look like: a swap of `..data` as well as a file written in place shows."""
    found = {}
    try:
        for entry in directory.iterdir():
            stat = entry.lstat()
            found[entry.name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:  # the volume is not there, or is being swapped under the scan
        return {}
    return found
