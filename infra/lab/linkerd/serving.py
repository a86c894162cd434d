"""What Linkerd's webhook servers have in common: TLS from a mounted Secret, read again when it changes.

The control plane's servers in Go watch the mount and swap the pair in memory; a kubelet brings each pod the new Secret
at its own time. A policy-validator of linkerd2 issue 7519 never reads it again (`LAB_NO_RELOAD`).
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.lab.linkerd.gotext import log_line

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.kubelet.runtime import Container

TLS_MOUNT = "/var/run/linkerd/tls"
NO_RELOAD_ENV = "LAB_NO_RELOAD"
_POLL_SECONDS = 0.25


def load(container: Container) -> ssl.SSLContext:
    """A context with the pair of the mount, for as long as `follow` does not replace it.

    Raises:
        OSError: It cannot be used; ssl.SSLError is one.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(tls, container.path(TLS_MOUNT))
    return tls


async def follow(container: Container, tls: ssl.SSLContext) -> None:
    """Serve with a new pair as soon as the mount has one, without a restart."""
    if container.env.get(NO_RELOAD_ENV):
        return
    mount = container.path(TLS_MOUNT)
    seen = _text(mount)
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        try:
            current = _text(mount)
            if current == seen:
                continue
            _load(tls, mount)
        except OSError as error:  # a mismatched pair is an ssl.SSLError, which is an OSError
            container.log(log_line(datetime.now(UTC), "warning", f"TLS secret not usable: {error}"))
            continue
        seen = current
        container.log(log_line(datetime.now(UTC), "info", "Updated certificate"))


def _text(mount: Path) -> bytes:
    return (mount / "tls.crt").read_bytes()


def _load(tls: ssl.SSLContext, mount: Path) -> None:
    tls.load_cert_chain(mount / "tls.crt", mount / "tls.key")
