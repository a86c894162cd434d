"""What each Istio version does with a changed CA, and which versions are not to be trusted with one.

Source: istio/istio pilot/pkg/bootstrap/istio_ca.go and pilot/pkg/features at each release branch, and the issues named
in the text. The table is a predictor: what an istiod really did is read from it afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering
from typing import TYPE_CHECKING, Final

from capstan.errors import InvalidCertificate, InvalidPem
from capstan.pki.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Mapping

MULTIROOT: Final = "ISTIO_MULTIROOT_MESH"
AUTO_RELOAD: Final = "AUTO_RELOAD_PLUGIN_CERTS"
XDS_AGENT: Final = "PROXY_CONFIG_XDS_AGENT"
ROTATOR_INTERVAL: Final = "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL"

_VERSION: Final = re.compile(
    r"(?<![\d.])v?(?P<major>\d+)\.(?P<minor>\d+)(?:\.(?P<patch>\d+))?(?:-(?P<pre>(?:alpha|beta|rc|dev)[.\w]*))?"
)
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """An Istio version, ordered as releases are: 1.30.0-rc.0 comes before 1.30.0.

    Attributes:
        pre: `rc.0`, `beta.1`; empty for a release. Suffixes of builds (`-distroless`, `-1`) are no part of it.
    """

    major: int
    minor: int
    patch: int = 0
    pre: str = ""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" + (f"-{self.pre}" if self.pre else "")

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, int, int, tuple[tuple[int, str], ...]]:
        parts = tuple((int(part), "") if part.isdigit() else (-1, part) for part in self.pre.split("."))
        return (self.major, self.minor, self.patch, 0 if self.pre else 1, parts)

    def at_least(self, major: int, minor: int, patch: int = 0) -> bool:
        """Whether this is that release or a later one, its release candidates included."""
        return (self.major, self.minor, self.patch) >= (major, minor, patch)


def parse_version(text: str) -> Version | None:
    """The version in a tag or in what a process says of itself: `1.30.1`, `v1.27.1-1`, `1.26-alpha.0`,
    `1.24.3-distroless`, `1.20.0-rc.1-debug`; None if there is none (`latest`, a digest)."""
    found = _VERSION.search(text)
    if found is None:
        return None
    pre = (found["pre"] or "").rstrip(".")
    return Version(int(found["major"]), int(found["minor"]), int(found["patch"] or 0), pre)


def image_version(image: str) -> Version | None:
    """The version in an image's tag: `docker.io/istio/pilot:1.30.1`, `mcr.microsoft.com/oss/istio/pilot:1.27.1-2`."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    return parse_version(tag) if tag else None


def flag(env: Mapping[str, str], name: str, default: bool) -> bool:
    """A boolean of an environment as Go's strconv.ParseBool reads it; what does not parse counts as not given, as in
    istio's pkg/env."""
    text = env.get(name, "")
    return True if text in _TRUE else False if text in _FALSE else default


class Taken(StrEnum):
    """How a running istiod comes to work with a changed CA."""

    HOT = "hot"
    """By itself, once the files in its container have changed."""
    RESTART = "restart"
    """Only at its next start; until then it goes on as before, or drops the whole change."""
    REFUSED = "refused"
    """Not at all, or in a way that breaks workloads: the change must not be made with this version."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What will come of a change, and by which rule."""

    taken: Taken
    why: str


@dataclass(frozen=True, slots=True)
class CaChange:
    """What is to change in the files of a plug-in CA.

    Attributes:
        roots_before: Text of root-cert.pem as the istiod read it; empty if there was no plug-in CA.
        roots_after: Text of root-cert.pem as it shall be.
        signer: Whether ca-cert.pem, ca-key.pem or cert-chain.pem change.
    """

    roots_before: str
    roots_after: str
    signer: bool = False

    @property
    def roots(self) -> bool:
        """Whether the text of the roots changes."""
        return self.roots_before != self.roots_after


def how_taken(version: Version | None, env: Mapping[str, str], change: CaChange) -> Prediction:
    """Predict what an istiod of this version with this environment does with a change of its `cacerts` files.

    An unknown version counts as one that needs a restart, which is right for every version.
    """
    if version is not None and (why := refused_version(version)):
        return Prediction(Taken.REFUSED, why)
    if not change.roots_before:
        return Prediction(Taken.RESTART, "files that were not there at its start are not watched (istio#57853)")
    if not change.roots and not change.signer:
        return Prediction(Taken.HOT, "nothing changes")
    if version is None:
        return Prediction(Taken.RESTART, "its version is unknown")
    if not reloads(version, env):
        return Prediction(Taken.RESTART, f"{version} reads its CA at its start only")
    if not change.roots:
        return Prediction(Taken.HOT, f"{version} reloads a changed intermediate")
    if not version.at_least(1, 20):
        return Prediction(Taken.RESTART, f"{version} drops every update that changes the roots")
    if not flag(env, MULTIROOT, False):
        return Prediction(Taken.RESTART, f"without {MULTIROOT}=true an update that changes the roots is dropped")
    if not contained(version, change.roots_before, change.roots_after):
        rule = "the certificates of one" if version.at_least(1, 30) else "the text of one, byte for byte,"
        return Prediction(Taken.RESTART, f"{version} takes changed roots only where {rule} contain those of the other")
    return Prediction(Taken.HOT, f"{version} reloads roots of which one set contains the other")


def reloads(version: Version, env: Mapping[str, str]) -> bool:
    """Whether this istiod watches its plug-in files at all.

    <= 1.11 never; 1.12 to 1.17 if AUTO_RELOAD_PLUGIN_CERTS is true; 1.18 unless it is false; always since 1.19.
    """
    if not version.at_least(1, 12):
        return False
    if version.at_least(1, 19):
        return True
    return flag(env, AUTO_RELOAD, version.at_least(1, 18))


def contained(version: Version, before: str, after: str) -> bool:
    """Whether one root text counts as contained in the other: as bytes up to 1.29, as parsed certificates since 1.30
    (istio#59909). A text that does not parse contains nothing."""
    if not version.at_least(1, 30):
        return before in after or after in before
    try:
        old = Bundle.parse_lenient(before, "roots before").fingerprints
        new = Bundle.parse_lenient(after, "roots after").fingerprints
    except (InvalidPem, InvalidCertificate):
        return False
    return old <= new or new <= old


def refused_version(version: Version) -> str:
    """Why no root may be rotated under this istiod; empty if it may."""
    if (version.major, version.minor, version.patch) in ((1, 24, 4), (1, 25, 1)):
        fixed = "1.24.5" if version.minor == 24 else "1.25.2"
        return f"{version} hands out only the last of several roots (istio#55793, fixed in {fixed})"
    return ""


def needs_complete_set(version: Version) -> bool:
    """Whether an istiod refuses to start as soon as any one of the plug-in files is missing beside others: since
    1.26.1. Before, it asked for the signing key alone, see `starts_without`.

    Source: istio/istio pilot/pkg/bootstrap/istio_ca.go at the tags 1.26.0 and 1.26.1 (checkCABundleCompleteness), of
    1.24 and 1.25 at their last ones.
    """
    return version.at_least(1, 26, 1)


def starts_without(version: Version | None, signing_key: bool) -> bool | None:
    """Whether an istiod starts with an incomplete set of plug-in files, as a self-signed CA with a root of its own.

    Args:
        signing_key: Whether the signing key is among the files that are missing.

    Returns:
        False where it does not start; None where the version, and with it the answer, is unknown.

    Source: as `needs_complete_set`; recorded from 1.14: without the key it makes itself a root, without any other of
    the files it exits with 255.
    """
    if not signing_key:
        return False
    return None if version is None else not needs_complete_set(version)


def pushes_roots(version: Version | None, istiod: Mapping[str, str], proxy: Mapping[str, str]) -> bool:
    """Whether a proxy re-signs at once when the text of the trust bundle changes: MULTIROOT on istiod's side (since
    1.20 for plug-in roots) and PROXY_CONFIG_XDS_AGENT on the proxy's."""
    known = version is not None and version.at_least(1, 20)
    return known and flag(istiod, MULTIROOT, False) and flag(proxy, XDS_AGENT, False)


def follows_changed_roots(version: Version) -> bool:
    """Whether a sidecar loads a changed root without a restart: since 1.0.8 and 1.1.8 (istio.io, Extending Self-Signed
    Certificate Lifetime)."""
    if (version.major, version.minor) == (1, 0):
        return version.patch >= 8
    return version.at_least(1, 1, 8)


def ztunnel_follows_changed_roots(version: Version) -> bool:
    """Whether a ztunnel's own connection to the CA takes changed roots without a restart: since 1.28.6, 1.29.2 and
    1.30.0 (ztunnel commit 642b1d7d)."""
    if (version.major, version.minor) == (1, 28):
        return version.patch >= 6
    if (version.major, version.minor) == (1, 29):
        return version.patch >= 2
    return version.at_least(1, 30)
