"""What each version of istiod does, as far as its certificate authority goes.

Every rule was read in istio/istio at the tags on both sides of it (pilot/pkg/bootstrap/istio_ca.go and
certcontroller.go, security/pkg/pki, security/pkg/server/ca); those of 1.14 were also seen on a running one
(tests/vectors/controllers/istiod).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Version = tuple[int, int, int]

_LATEST_PATCH = 1_000  # of a tag such as "1.30" or "1.30-dev", which names a branch, not a release


class RootChange(StrEnum):
    """What a running istiod demands of a changed root-cert.pem."""

    NEVER = "never"
    """1.12 to 1.19: the whole update is dropped."""
    DISABLED = "disabled"
    """From 1.20 on without ISTIO_MULTIROOT_MESH: the whole update is dropped, in other words."""
    BYTES = "bytes"
    """1.20 to 1.29: one text must contain the other (bytes.Contains)."""
    CERTIFICATES = "certificates"
    """From 1.30 on: one set of certificates must contain the other."""


class ChainElements(StrEnum):
    """How CreateCertificate splits its answer into elements."""

    WHOLE_FILES = "whole-files"
    """Up to 1.24.3 and 1.25.0: leaf, cert-chain.pem as one element, root-cert.pem as one element."""
    EACH_CERTIFICATE = "each-certificate"
    """1.24.4 and 1.25.1: one certificate per element, roots too, so a sidecar takes the last root for the bundle."""
    ROOTS_WHOLE = "roots-whole"
    """From 1.24.5, 1.25.2 and 1.26.0 on: one certificate per element, and the root bundle whole as the last one."""


def parse(tag: str) -> Version:
    """The version of an image tag: `1.30.1`, `1.30.1-distroless`, `v1.14`, `1-30` of an AKS revision.

    Raises:
        ValueError: If the tag names no version.
    """
    found = re.match(r"v?(\d+)[.-](\d+)(?:\.(\d+))?", tag)
    if found is None:
        raise ValueError(f"not an Istio version: {tag!r} (expected e.g. 1.30.1)")
    major, minor, patch = found.groups()
    return int(major), int(minor), _LATEST_PATCH if patch is None else int(patch)


def flag(env: Mapping[str, str], name: str, default: bool) -> bool:
    """A boolean of the environment as Go's strconv.ParseBool reads it; what it cannot read is the default."""
    value = env.get(name, "")
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    return default


@dataclass(frozen=True)
class Rules:
    """The behaviour of one version with one environment."""

    version: Version
    multi_root: bool
    """ISTIO_MULTIROOT_MESH."""
    reloads: bool
    """A running istiod follows changes of the plug-in CA's files."""
    root_change: RootChange
    complete_set: bool
    """Refuses to start with a part of the plug-in CA's files; older ones only ask whether the key is there."""
    crl: bool
    """Reads ca-crl.pem, if it is there."""
    tls_format: bool
    """Knows tls.crt, tls.key and ca.crt (Secrets of type kubernetes.io/tls)."""
    cacerts_for_self_signed: bool
    """USE_CACERTS_FOR_SELF_SIGNED_CA."""
    chain_elements: ChainElements

    @classmethod
    def of(cls, tag: str, env: Mapping[str, str]) -> Rules:
        """The rules of the image with this tag; raises ValueError for a tag that names no version."""
        version = parse(tag)
        multi_root = flag(env, "ISTIO_MULTIROOT_MESH", default=False)
        return cls(
            version=version,
            multi_root=multi_root,
            reloads=_reloads(version, env),
            root_change=_root_change(version, multi_root=multi_root),
            complete_set=version >= (1, 26, 1),
            crl=version >= (1, 27, 0) and flag(env, "PILOT_ENABLE_CA_CRL", default=True),
            tls_format=version >= (1, 14, 0),
            cacerts_for_self_signed=version >= (1, 20, 0)
            and flag(env, "USE_CACERTS_FOR_SELF_SIGNED_CA", default=False),
            chain_elements=_chain_elements(version),
        )

    @property
    def pushes_bundles(self) -> bool:
        """Whether a changed bundle is pushed to proxies (the trust-bundle updates of ProxyConfig over xDS)."""
        return self.multi_root and self.version >= (1, 20, 0)

    @property
    def notifies_of_self_signed_roots(self) -> bool:
        """The rotator brings a new root to ConfigMaps and webhooks itself; older ones leave it to the 60 s poll."""
        return self.version >= (1, 21, 0)

    @property
    def ignored_namespaces(self) -> frozenset[str]:
        """Namespaces that get no istio-ca-root-cert. From 1.21 on kube-system gets one, for ztunnel."""
        always = frozenset({"kube-public", "kube-node-lease", "local-path-storage"})
        return always if self.version >= (1, 21, 0) else always | {"kube-system"}

    @property
    def expiry_seconds(self) -> bool:
        """The metrics `…_expiry_seconds` exist."""
        return self.version >= (1, 23, 0)

    @property
    def records_expiry_on_reload(self) -> bool:
        """The expiry metrics follow a reload; in older ones they stay those of the start."""
        return self.version >= (1, 24, 0)

    @property
    def clamps_leaves(self) -> bool:
        """No leaf outlives its signer."""
        by_minor = {28: 7, 29: 3}
        minor, patch = self.version[1:]
        return minor >= 30 or patch >= by_minor.get(minor, _LATEST_PATCH + 1)

    @property
    def root_in_secret(self) -> bool:
        """istio-ca-secret is made with its root-cert.pem filled; older ones leave it empty."""
        return self.version >= (1, 20, 0)


def _reloads(version: Version, env: Mapping[str, str]) -> bool:
    if version < (1, 12, 0):
        return False
    if version >= (1, 19, 0):
        return True
    return flag(env, "AUTO_RELOAD_PLUGIN_CERTS", default=version >= (1, 18, 0))


def _root_change(version: Version, *, multi_root: bool) -> RootChange:
    if version < (1, 20, 0):
        return RootChange.NEVER
    if not multi_root:
        return RootChange.DISABLED
    return RootChange.CERTIFICATES if version >= (1, 30, 0) else RootChange.BYTES


def _chain_elements(version: Version) -> ChainElements:
    if version in ((1, 24, 4), (1, 25, 1)):
        return ChainElements.EACH_CERTIFICATE
    if (1, 24, 5) <= version < (1, 25, 0) or version >= (1, 25, 2):
        return ChainElements.ROOTS_WHOLE
    return ChainElements.WHOLE_FILES
