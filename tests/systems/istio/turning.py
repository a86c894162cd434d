"""An Istio that follows what is written into `cacerts`, for tests of what Capstan waits for and restarts.

Time is the tests': a pause costs nothing, and whatever is to happen while Capstan waits happens within it. Restarts are
carried out when Capstan says that it has asked for one, which it does before it looks whether they have ended.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, MUTATING_WEBHOOKS, PODS, SECRETS, VALIDATING_WEBHOOKS
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.observe import View, observe
from capstan.systems.istio.settle import settle
from tests.support.istio_mesh import SYSTEM, IstioMesh
from tests.support.mesh import Minted, intermediate, pem

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.restart import RestartReport, Step
    from tests.support.apiserver import Running


class TurningMesh:
    """A control plane of two replicas; workloads as a test adds them.

    Attributes:
        while_waiting: Called at every pause, with the number of seconds that have passed in pauses so far.
        on_restart: What a restarted istiod comes up with; by default, what stands in `cacerts`.
        said: What Capstan told of its progress.
        pace: How much faster time passes in a pause than Capstan means it to, for long waits that look often.
    """

    def __init__(self, running: Running, *, version: str = "1.30.1", env: dict[str, str] | None = None) -> None:
        self.slept = 0.0
        self.pace = 1.0
        self.said: list[str] = []
        self.while_waiting: Callable[[float], None] = lambda _seconds: None
        self.on_restart: Callable[[], None] = self.take
        self.cluster = running.connect(sleep=self._sleep, clock=lambda: time.monotonic() + self.slept)
        self.mesh = IstioMesh(running, self.cluster, env=env or {"PILOT_TRACE_SAMPLING": "1.0"})
        self.second = intermediate("Intermediate CA 2", self.mesh.new)
        self.minted = {each.certificate.fingerprint: each for each in (self.mesh.issuer, self.second)}
        self.write_secret(self.mesh.issuer, self.mesh.old, first=True)
        self.mesh.control_plane(version=version)
        self.started(now() + timedelta(minutes=1))  # after the Secret was made: they watch its files
        self.mesh.places(SYSTEM, "shop")
        self.source: Any = CacertsSource(self.cluster, SYSTEM, now=now)

    @property
    def old(self) -> str:
        """Fingerprint of the present root."""
        return self.mesh.old.certificate.fingerprint

    @property
    def new(self) -> str:
        """Fingerprint of the next one."""
        return self.mesh.new.certificate.fingerprint

    def write_secret(
        self, issuer: Minted, *roots: Minted, key: Minted | None = None, first: bool = False, chain: str | None = None
    ) -> None:
        """What stands at the source from now on, as if Capstan had written it."""
        above = self.mesh.old if issuer is self.mesh.issuer else self.mesh.new
        texts = {
            "ca-cert.pem": pem(issuer),
            "ca-key.pem": (key or issuer).key.pem().decode(),
            "cert-chain.pem": pem(issuer, above) if chain is None else chain,
            "root-cert.pem": pem(*roots),
        }
        if first:
            self.mesh.cacerts(texts)
            return
        item = self.cluster.get(SECRETS, "cacerts", SYSTEM)
        data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        self.cluster.replace(SECRETS, {**item, "data": data})

    def started(self, at: datetime) -> None:
        """When the istiods' containers started."""
        for pod in self.cluster.list(PODS, SYSTEM).items:
            if pod["metadata"]["name"] in self.mesh.signers:
                self.mesh.mesh.set_status(SYSTEM, pod["metadata"]["name"], pod["spec"], started=f"{at:%FT%TZ}")

    def take(self, *pods: str) -> None:
        """These istiods (all of them, unless named) work with what stands in `cacerts` now, and say so everywhere."""
        data = self.cluster.get(SECRETS, "cacerts", SYSTEM)["data"]
        text = {key: base64.b64decode(value).decode() for key, value in data.items()}
        for name, signer in self.mesh.signers.items():
            if not pods or name in pods:
                signer.issuer = next(each for each in self.minted.values() if pem(each) == text["ca-cert.pem"])
                signer.chain, signer.roots = text["cert-chain.pem"], text["root-cert.pem"]
        self.publish(text["root-cert.pem"])

    def publish(self, roots: str) -> None:
        """ConfigMaps and webhooks repeat these roots."""
        for item in self.cluster.list(CONFIG_MAPS).items:
            if item["metadata"]["name"] == "istio-ca-root-cert":
                self.cluster.replace(CONFIG_MAPS, {**item, "data": {"root-cert.pem": roots}})
        bundle = base64.b64encode(roots.encode()).decode()
        for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            for item in self.cluster.list(resource).items:
                hooks = [
                    {**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in item["webhooks"]
                ]
                kinds = {"apiVersion": resource.api_version, "kind": resource.kind}
                self.cluster.replace(resource, {**item, **kinds, "webhooks": hooks})

    def look(self) -> View:
        """Istiods and places."""
        return observe(self.cluster, SYSTEM, self.source, control_plane_only=True, timeout=5)

    def look_at_all(self) -> View:
        """Proxies, too."""
        return observe(self.cluster, SYSTEM, self.source, timeout=5)

    def settle(
        self,
        *,
        roots: set[str] | None = None,
        issuer: Minted | None = None,
        seconds: float = 3600.0,
        afresh: bool = False,
        stamp: str = "r-1/trust",
    ) -> RestartReport:
        """As the adapter calls it."""
        return settle(
            self.cluster, self.source, self.look, stamp,
            roots=None if roots is None else frozenset(roots),
            issuer=None if issuer is None else issuer.certificate.fingerprint,
            seconds=seconds, afresh=afresh, look_at_proxies=self.look_at_all, on_progress=self.progress, now=now,
        )  # fmt: skip

    def progress(self, step: Step) -> None:
        """Told of each step; carries out a restart."""
        self.said.append(f"{step.owner.name}: {step.message}")
        if step.message == "restarting":
            if step.owner.name.startswith("istiod"):
                self.on_restart()
            self.rolled_out(step.owner.namespace, step.owner.name)

    def rolled_out(self, namespace: str, name: str) -> None:
        """The Deployment's controller has brought out the present template."""
        item = self.cluster.get(DEPLOYMENTS, name, namespace)
        status = {**item["status"], "observedGeneration": item["metadata"]["generation"]}
        self.cluster.patch(DEPLOYMENTS, name, {"status": status}, namespace, subresource="status")

    def stamps(self, name: str = "istiod", namespace: str = SYSTEM) -> str:
        """For what the Deployment was restarted last; empty if never."""
        item = self.cluster.get(DEPLOYMENTS, name, namespace)
        annotations = item["spec"]["template"]["metadata"].get("annotations") or {}
        return str(annotations.get("capstan.dev/restarted-for", ""))

    def end_pod(self, namespace: str, name: str) -> None:
        """A pod's process has ended."""
        self.cluster.patch(PODS, name, {"status": {"phase": "Succeeded"}}, namespace, subresource="status")

    def close(self) -> None:
        """Stop every port."""
        self.mesh.close()
        self.cluster.close()

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds * self.pace
        self.while_waiting(self.slept)


def now() -> datetime:
    """The wall clock: certificates of these tests are made by it."""
    return datetime.now(UTC)
