"""The rotation CronJob of Linkerd's own blog ("Hands off Linkerd certificate rotation", 20 October 2025).

Its order: renew the anchor, wait, renew the issuer, wait, restart the control plane, wait, restart the Deployments of
annotated namespaces one namespace after another, wait, drop the old anchor. Its waits are fixed sleeps (120, 120, 20,
60, 10, 60 s); here they are scaled down. "Renew" means here what cert-manager and trust-manager
would leave in the cluster: a bundle of old and new root, an issuer signed by the new one.

    python -m infra.lab.procedures.documented_blog --kubeconfig FILE --control URL [--scale 0.0167]

prints JSON: the steps with their times, and what the prober counted meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from infra.lab import pki
from infra.lab.client import Informer, KubeClient
from infra.lab.linkerd.issuer import SCHEME_FILES
from infra.lab.linkerd.sidecar import ROOTS_CONFIG_MAP, ROOTS_KEY
from infra.lab.linkerd.workload import encode
from infra.lab.objects import is_available

JSON = dict[str, Any]

NAMESPACE = "linkerd"
ISSUER_SECRET = "linkerd-identity-issuer"  # noqa: S105 - the name of a Secret
AFTER_RENEWAL, AFTER_CONTROL_PLANE, BEFORE_DATA_PLANE, BETWEEN_NAMESPACES, BEFORE_DROP = 120, 20, 60, 10, 60
ROLLOUT_SECONDS = 300.0
DEFAULT_SCALE = 1 / 60


@dataclass
class Procedure:
    """One run of the procedure.

    Args:
        scale: What the script's sleeps are multiplied with. The default is that of the kubelets' volume delay (about
            60 s in life, 1 s in the lab), so that the sleeps do what they are for: by their end the volumes are new.
    """

    client: KubeClient
    scale: float = DEFAULT_SCALE
    steps: list[JSON] = field(default_factory=list)

    async def run(self) -> None:
        """All steps in the script's order.

        Raises:
            ApiError: If the cluster refuses a write.
            TimeoutError: If a rollout does not end within 300 s.
        """
        root = pki.mint_root(now=datetime.now(UTC), name=f"root.linkerd.cluster.local {int(time.time())}")
        await self._step("renew the trust anchor: new root appended to the bundle", self._append_root(root))
        await self._sleep(AFTER_RENEWAL)
        await self._step("renew the issuer: signed by the new root", self._switch_issuer(root))
        await self._sleep(AFTER_RENEWAL)
        await self._step("restart the control plane", self._restart(NAMESPACE))
        await self._sleep(AFTER_CONTROL_PLANE)
        await self._sleep(BEFORE_DATA_PLANE)
        for namespace in await self._annotated_namespaces():
            await self._step(f"restart the Deployments of namespace {namespace}", self._restart(namespace))
            await self._sleep(BETWEEN_NAMESPACES)
        await self._sleep(BEFORE_DROP)
        await self._step("remove the old anchor from the bundle", self._write_bundle(root.certificate_pem))

    async def _append_root(self, root: pki.KeyPair) -> None:
        current = await self.client.get(self._bundle_path)
        await self._write_bundle(current["data"][ROOTS_KEY].rstrip("\n") + "\n" + root.certificate_pem)

    async def _write_bundle(self, pem: str) -> None:
        await self.client.patch(self._bundle_path, {"data": {ROOTS_KEY: pem.strip()}})

    @property
    def _bundle_path(self) -> str:
        return f"/api/v1/namespaces/{NAMESPACE}/configmaps/{ROOTS_CONFIG_MAP}"

    async def _switch_issuer(self, root: pki.KeyPair) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{ISSUER_SECRET}"
        issuer = pki.mint_issuer(root, now=datetime.now(UTC))
        held = (await self.client.get(path))["data"]
        data: dict[str, str] = {}
        for certificate, key in SCHEME_FILES.values():
            if certificate in held:
                data |= {certificate: encode(issuer.certificate_pem), key: encode(issuer.key_pem)}
        if "ca.crt" in held:
            data["ca.crt"] = encode(root.certificate_pem)
        await self.client.patch(path, {"data": data})

    async def _annotated_namespaces(self) -> list[str]:
        """Only namespaces that carry the annotation themselves, as the script's jq filter selects them."""
        found = (await self.client.list("/api/v1/namespaces"))["items"]
        return sorted(
            item["metadata"]["name"]
            for item in found
            if (item["metadata"].get("annotations") or {}).get("linkerd.io/inject") == "enabled"
        )

    async def _restart(self, namespace: str) -> None:
        """`kubectl rollout restart deployment` and `kubectl rollout status` for one namespace."""
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        deployments = await Informer(self.client, path).synced()
        try:
            stamp = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat(timespec="seconds")}
            patch = {"spec": {"template": {"metadata": {"annotations": stamp}}}}
            wanted = {}
            for _, name in list(deployments.objects):
                answer = await self.client.patch(f"{path}/{name}", patch, kind="strategic")
                wanted[namespace, name] = answer["metadata"]["generation"]
            await deployments.wait_for(
                lambda found: all(
                    key in found and found[key]["metadata"]["generation"] >= generation and is_available(found[key])
                    for key, generation in wanted.items()
                ),
                ROLLOUT_SECONDS,
            )
        finally:
            await deployments.stop()

    async def _step(self, what: str, work: Any) -> None:
        begin = time.monotonic()
        await work
        self.steps.append({"step": what, "seconds": round(time.monotonic() - begin, 2)})

    async def _sleep(self, seconds: float) -> None:
        scaled = seconds * self.scale
        self.steps.append({"step": f"sleep {seconds} s", "seconds": round(scaled, 2)})
        await asyncio.sleep(scaled)


async def run(kubeconfig: Path, control: str, scale: float, watch_seconds: float) -> JSON:
    """Run the procedure under the prober's eyes; the result as printed."""
    async with KubeClient.from_kubeconfig(kubeconfig, user_agent="documented-blog") as client:
        procedure = Procedure(client, scale)
        async with httpx.AsyncClient(base_url=control, trust_env=False) as prober:
            await prober.post("/prober/reset")
            begin = time.monotonic()
            await procedure.run()
            seconds = time.monotonic() - begin
            # Proxies that nobody restarted live on what they have until their leaves run out.
            await asyncio.sleep(watch_seconds)
            counted = (await prober.get("/prober")).json()
    failures = counted.pop("failures")
    return {
        "procedure": "documented-blog",
        "seconds": round(seconds, 1),
        "steps": procedure.steps,
        "handshakes": {"attempted": counted["attempted"], "failed": counted["failed"]},
        "first_failures": failures[:3],
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Run the rotation CronJob of Linkerd's blog on a lab.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--control", required=True, help="the lab's control URL (lab.json)")
    parser.add_argument("--scale", type=float, default=DEFAULT_SCALE, help="factor of the script's sleeps")
    parser.add_argument("--watch-seconds", type=float, default=30.0, help="how long to go on counting afterwards")
    arguments = parser.parse_args()
    result = asyncio.run(run(arguments.kubeconfig, arguments.control, arguments.scale, arguments.watch_seconds))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
