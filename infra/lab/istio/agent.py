"""istio-agent (pilot-agent): how a proxy comes by its leaf and its roots.

A CSR goes to CA_ADDR over gRPC with the pod's token; the answer is the leaf, its chain and, last, all of the root
bundle, so trust changes when the leaf is renewed. It is renewed at half of its life, give or take one per cent. With
PROXY_CONFIG_XDS_AGENT the roots that istiod pushes are added to them, and another text means another leaf at once.
(security/pkg/nodeagent/cache/secretcache.go; facts on timing and trust are Istio 1.30's.)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509

from infra.lab.istio import golog
from infra.lab.istio.authority import Authority, CsrError
from infra.lab.istio.material import Key, Material, merged_roots
from infra.lab.istio.sidecar import ROOTS_KEY, ROOTS_MOUNT, TOKEN_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.lab.kubelet.runtime import Container

FIRST_RENEWAL = "LAB_FIRST_RENEWAL"
""""random": the first renewal comes at any time until it is due, as in a mesh whose pods have not started together."""
STUCK = "lab.capstan.dev/agent-stuck"
""""true" on a pod: its agent signs once and never again, neither at half of the life nor for a pushed bundle."""
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")


class Agent:
    """The agent of one pod.

    Args:
        resolve: Turns `host:port` of a cluster service into an address that can be dialled from here.
        deliver: Takes each new state to the proxy; raises ValueError or OSError if the proxy rejects it.
        rng: Jitter of the renewals.
    """

    def __init__(
        self,
        container: Container,
        identity: str,
        resolve: Callable[[str], str],
        deliver: Callable[[Material], None],
        *,
        rng: random.Random | None = None,
    ) -> None:
        env = container.env
        self.identity = identity
        self.csr_count = 0
        self.csr_failures = 0
        self._container = container
        self._deliver = deliver
        self._rng = rng or random.Random()
        self._log = golog.Log(container.log, now_utc)
        self._ttl = seconds(env.get("SECRET_TTL", "24h"))
        self._ratio = float(env.get("SECRET_GRACE_PERIOD_RATIO", "0.5"))
        self._jitter = float(env.get("SECRET_GRACE_PERIOD_RATIO_JITTER", "0.01"))
        self._stuck = (container.pod["metadata"].get("annotations") or {}).get(STUCK) == "true"
        self._of_any_age = env.get(FIRST_RENEWAL) == "random"
        self._elliptic = env.get("ECC_SIGNATURE_ALGORITHM", "") == "ECDSA"
        self._trust_domain = env.get("TRUST_DOMAIN", "cluster.local")
        self._takes_pushes = env.get("PROXY_CONFIG_XDS_AGENT", "") == "true" and not self._stuck
        roots = container.path(f"{ROOTS_MOUNT}/{ROOTS_KEY}")
        self._authority = Authority(env["CA_ADDR"], resolve, roots=roots, token=container.path(TOKEN_FILE))
        self._cluster = env.get("ISTIO_META_CLUSTER_ID", "Kubernetes")
        self._pushed = ""
        self._answered_roots = ""
        self._sign_now = asyncio.Event()
        self._material: Material | None = None

    async def run(self) -> None:
        """Sign and renew until cancelled."""
        following = asyncio.create_task(self._follow())
        try:
            await self._renew_forever()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._authority.close()

    async def _renew_forever(self) -> None:
        retry = FIRST_RETRY_SECONDS
        age = self._rng.random() if self._of_any_age else 0.0
        while True:
            self._sign_now.clear()
            try:
                await self._sign()
            except CsrError as error:
                self.csr_failures += 1
                self._log.warn(f"failed to generate secret for proxy: {error}", "sds")
                await asyncio.sleep(retry)
                retry = min(retry * 2, LAST_RETRY_SECONDS)
                continue
            if self._stuck:
                await asyncio.Event().wait()
            retry = FIRST_RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_renewal() * (1 - age)):
                    age = 0.0
                    await self._sign_now.wait()

    def _until_renewal(self) -> float:
        """Seconds to half of the leaf's life, from now on as the agent counts it, with the jitter."""
        if self._material is None:
            return 0.0
        left = (self._material.leaf.not_valid_after_utc - now_utc()).total_seconds()
        return max(left * (1 - renewal_ratio(self._ratio, self._jitter, self._rng)), 0.0)

    async def _sign(self) -> None:
        """One leaf, with its roots, to the proxy; raises CsrError."""
        began = now_utc()
        key = Key.generate(self.identity, elliptic=self._elliptic)
        self.csr_count += 1
        chain = await self._authority.sign(key.csr_pem, self._ttl, {"ClusterID": self._cluster})
        leaf_pem, self._answered_roots = "".join(map(_ended, chain[:-1])), chain[-1]
        roots_pem = self._roots()
        before = self._material
        try:
            fresh = Material(
                identity=self.identity,
                trust_domain=self._trust_domain,
                key_pem=key.pem,
                chain_pem=leaf_pem,
                roots_pem=roots_pem,
                leaf_updated=now_utc(),
                roots_updated=now_utc() if before is None or before.roots_pem != roots_pem else before.roots_updated,
                scratch=self._scratch(),
            ).load()
            self._deliver(fresh)
        except (ValueError, OSError) as error:
            raise CsrError(f"the proxy rejects the answer of the CA: {error}") from error
        self._material = fresh
        took, life = now_utc() - began, fresh.leaf.not_valid_after_utc - now_utc()
        latency, ttl = f"{took / timedelta(milliseconds=1):.3f}ms", f"{life.total_seconds():.6f}s"
        self._log.info(f"generated new workload certificate\tresourceName=default latency={latency} ttl={ttl}", "cache")
        if before is not None and before.roots_pem != roots_pem:
            self._log.info("Root cert has changed, start rotating root cert", "cache")

    def _roots(self) -> str:
        """ROOTCA: the CA's answer, and with a pushed bundle the union of both. Raises CsrError."""
        if not self._pushed:
            return self._answered_roots
        try:
            return merged_roots(self._answered_roots, self._pushed)
        except ValueError as error:
            raise CsrError(f"failed to parse root certificates: {error}") from error

    def _scratch(self) -> Path:
        directory = self._container.path("/etc/istio/proxy") / "keys"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    # --- pushed trust bundles ---------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep the connection to istiod, as every agent does for its proxy, and take pushes if told to."""
        node = f"{self._container.args[1] if len(self._container.args) > 1 else 'sidecar'}~{self._container.ip}"
        node += f"~{self._container.pod_name}.{self._container.namespace}~{self._container.namespace}.svc.cluster.local"
        retry = FIRST_RETRY_SECONDS
        while True:
            try:
                async for pem in self._authority.trust_bundles(node):
                    retry = FIRST_RETRY_SECONDS
                    if self._takes_pushes:
                        self._take(pem)
            except CsrError as error:
                self._log.warn(f"XDS client connection lost: {error}", "xdsproxy")
            await asyncio.sleep(retry)
            retry = min(retry * 2, LAST_RETRY_SECONDS)

    def _take(self, pem: str) -> None:
        """A pushed bundle; the same text again changes nothing."""
        if pem == self._pushed:
            return
        try:
            x509.load_pem_x509_certificates(pem.encode())
        except ValueError as error:
            self._log.error(f"failed to update config trust bundle: {error}", "xdsproxy")
            return
        self._pushed = pem
        if self._material is not None:
            try:
                self._deliver_roots(self._material, self._roots())
            except (CsrError, ValueError, OSError) as error:
                self._log.error(f"failed to update config trust bundle: {error}", "cache")
        self._sign_now.set()

    def _deliver_roots(self, current: Material, roots_pem: str) -> None:
        """New roots go to the proxy before the new leaf does: it is one round trip away."""
        if roots_pem == current.roots_pem:
            return
        fresh = dataclasses.replace(current, roots_pem=roots_pem, roots_updated=now_utc()).load()
        self._deliver(fresh)
        self._material = fresh


def renewal_ratio(ratio: float, jitter: float, rng: random.Random) -> float:
    """The part of a leaf's life that is left when it is renewed."""
    sign = rng.choice((-1.0, 1.0))
    return min(max(ratio + sign * rng.random() * jitter, 0.0), 1.0)


def seconds(duration: str) -> float:
    """A Go duration such as `40s` or `24h0m0s`; raises ValueError."""
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"time: invalid duration {duration!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def now_utc() -> datetime:
    """The current time, aware."""
    return datetime.now(UTC)


def _ended(pem: str) -> str:
    return pem if pem.endswith("\n") else pem + "\n"
