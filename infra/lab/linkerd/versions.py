"""What differs between Linkerd 2.12 and 2.20, read in its charts and its injector at the tags.

    2.12.1  the injector notes the hash of the roots on the pods it injects (pkg/inject; 2.12.0 does not)
    2.15    the chart knows `proxy.nativeSidecar`; it is false
    2.19    each container port of the control plane has a name of its own (`ident-admin`); before, every HTTP port
            is `admin-http`, and every gRPC port `grpc`
    2.20    `proxy.nativeSidecar` is true

Names of metrics are in `metrics`.
"""

from __future__ import annotations

import re

from infra.lab.linkerd.metrics import minor_version

_OWN_NAMES_SINCE = 19
_OLD_NAMES = {
    "ident-grpc": "grpc",
    "ident-admin": "admin-http",
    "dest-grpc": "grpc",
    "dest-admin": "admin-http",
    "spval-admin": "admin-http",
    "policy-grpc": "grpc",
    "policy-admin": "admin-http",
    "injector-admin": "admin-http",
}


def port_name(version: str, name: str) -> str:
    """What a version calls the container port that is `name` today."""
    return name if minor_version(version) >= _OWN_NAMES_SINCE else _OLD_NAMES.get(name, name)


def knows_native(version: str) -> bool:
    """Whether the chart has `proxy.nativeSidecar`."""
    return minor_version(version) >= 15


def native_by_default(version: str) -> bool:
    """Whether proxies are native sidecars unless told otherwise."""
    return minor_version(version) >= 20


def hashes_injected_roots(version: str) -> bool:
    """Whether injected pods have the annotation `linkerd.io/trust-root-sha256`."""
    return not version.endswith("2.12.0")


def shows_issuer(version: str) -> bool:
    """Whether identity tells when its issuer ends, in its log and as `issuer_cert_ttl_seconds` (edge-25.2.1)."""
    return _since(version, edge=(25, 2, 1), minor=18)


def logs_refusals(version: str) -> bool:
    """Whether identity logs the tokens that it refuses at level info, and not only in debug (edge-24.3.2)."""
    return _since(version, edge=(24, 3, 2), minor=16)


def _since(version: str, *, edge: tuple[int, int, int], minor: int) -> bool:
    """False for what is no version, such as a build of one's own."""
    if found := re.fullmatch(r"edge-(\d+)\.(\d+)\.(\d+)", version):
        return (int(found[1]), int(found[2]), int(found[3])) >= edge
    try:
        return minor_version(version) >= minor
    except ValueError:
        return False
