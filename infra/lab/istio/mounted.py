"""A proxy of Citadel's days: certificates come from the Secret istio.SERVICEACCOUNT, mounted at /etc/certs.

pilot-agent watches the files and, some seconds after the last change, restarts Envoy hot with what they hold then
(pilot/pkg/proxy/envoy/watcher.go: 10 s; the lab's installation makes that shorter). Nothing is renewed here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from infra.lab.istio import golog
from infra.lab.istio.agent import now_utc
from infra.lab.istio.material import Material
from infra.lab.istio.sidecar import CITADEL_MOUNT

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.kubelet.runtime import Container

CHAIN_FILE = f"{CITADEL_MOUNT}/cert-chain.pem"
KEY_FILE = f"{CITADEL_MOUNT}/key.pem"
ROOTS_FILE = f"{CITADEL_MOUNT}/root-cert.pem"
DELAY_ENV = "LAB_CERT_WATCH_SECONDS"
"""Seconds from a change of the files to the restart of Envoy: 10 in a real agent."""
POLL_SECONDS = 0.2


class MountedCertificates:
    """The agent of one pod; the same face as `agent.Agent`.

    Args:
        deliver: Takes each new state to the proxy; raises ValueError or OSError if the proxy rejects it.
    """

    def __init__(self, container: Container, identity: str, deliver: Callable[[Material], None]) -> None:
        self.csr_count = 0
        self.csr_failures = 0
        self._container = container
        self._identity = identity
        self._deliver = deliver
        self._delay = float(container.env.get(DELAY_ENV) or 10.0)
        self._log = golog.Log(container.log, now_utc)
        self._material: Material | None = None

    async def run(self) -> None:
        """Follow the files until cancelled."""
        seen: tuple[bytes, ...] | None = None
        while True:
            found = self._read()
            if found is not None and found != seen:
                if seen is not None:
                    self._log.info("watchFileEvents: certificates have changed")
                    await asyncio.sleep(self._delay)
                    found = self._read() or found
                seen = found
                self._load(*found)
            await asyncio.sleep(POLL_SECONDS)

    def _read(self) -> tuple[bytes, bytes, bytes] | None:
        try:
            chain, key, roots = (self._container.path(name).read_bytes() for name in (CHAIN_FILE, KEY_FILE, ROOTS_FILE))
        except OSError:
            return None
        return chain, key, roots

    def _load(self, chain: bytes, key: bytes, roots: bytes) -> None:
        scratch = self._container.path("/etc/istio/proxy") / "keys"
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = now_utc()
        try:
            fresh = Material(
                identity=self._identity,
                trust_domain=self._container.env.get("TRUST_DOMAIN", "cluster.local"),
                key_pem=key,
                chain_pem=chain.decode(),
                roots_pem=roots.decode(),
                leaf_updated=now,
                roots_updated=now,
                scratch=scratch,
            ).load()
            self._deliver(fresh)
        except (ValueError, OSError) as error:
            self._log.error(f"Envoy cannot start with {CITADEL_MOUNT}: {error}")
            return
        self._material = fresh
        self._log.info(f"Epoch starting with certificates of {CITADEL_MOUNT}")
