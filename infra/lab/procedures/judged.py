"""What the documented procedures for Istio have in common: the lab they run on, their steps, and the prober's verdict.

    python -m infra.lab.procedures.NAME --kubeconfig FILE --control URL [--vault FILE] --watch-seconds N

prints JSON: the steps with their times, and what the prober counted from the first step until N seconds after the last.
A wait for the life of a leaf (24 h on the pages) waits for one in the lab's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from infra.lab.client import Informer, KubeClient
from infra.lab.objects import is_available

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

JSON = dict[str, Any]

ROOTS_CONFIG_MAP, ROOTS_KEY = "istio-ca-root-cert", "root-cert.pem"
SETTLE_SECONDS = 120.0
BACKDATED = timedelta(minutes=2)  # of a leaf's notBefore, by istiod


@dataclass
class Script:
    """One run of a procedure on one lab.

    Attributes:
        client: An administrator's connection.
        control: The lab's control port.
        directory: The lab's own (where its kubeconfig is).
        arguments: The command line.
        steps: What has been done, with the seconds it took.
    """

    client: KubeClient
    control: httpx.AsyncClient
    directory: Path
    arguments: argparse.Namespace
    steps: list[JSON] = field(default_factory=list)

    async def step(self, what: str, work: Awaitable[Any]) -> None:
        """Do one step of the page."""
        begin = time.monotonic()
        await work
        self.steps.append({"step": what, "seconds": round(time.monotonic() - begin, 2)})

    async def wait_a_leaf_life(self) -> None:
        """The page's "wait for 24 hours": each leaf that is there now has ended or been renewed when it is over."""
        seconds = await self.leaf_seconds()
        await self.step(f"wait for the life of a leaf (24 h in life, {seconds:.0f} s here)", asyncio.sleep(seconds))

    async def leaf_seconds(self) -> float:
        """The longest life of a leaf that a proxy holds."""
        answer = await self.control.get("/pods")
        lives = []
        for pod in answer.json():
            if leaf := pod.get("leaf"):
                issued = datetime.fromisoformat(leaf["not_before"]) + BACKDATED
                lives.append((datetime.fromisoformat(leaf["not_after"]) - issued).total_seconds())
        return max(lives)

    async def published(self, namespace: str, roots: str) -> None:
        """Return once istiod has published exactly these roots; raises TimeoutError after 120 s."""
        informer = Informer(self.client, f"/api/v1/namespaces/{namespace}/configmaps")
        key = (namespace, ROOTS_CONFIG_MAP)

        def told(found: dict[tuple[str, str], JSON]) -> bool:
            return key in found and (found[key].get("data") or {}).get(ROOTS_KEY, "").split() == roots.split()

        try:
            await informer.wait_for(told, SETTLE_SECONDS)
        finally:
            await informer.stop()

    async def restart_istiods(self, namespace: str, stamp: str) -> None:
        """`kubectl rollout restart deployment` for every istiod, until it is done; raises TimeoutError after 120 s."""
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        found = await self.client.list(path, labelSelector="app=istiod")
        annotations = {"kubectl.kubernetes.io/restartedAt": stamp}
        patch = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
        wanted = {}
        for item in found["items"]:
            name = item["metadata"]["name"]
            answer = await self.client.patch(f"{path}/{name}", patch, kind="strategic")
            wanted[namespace, name] = answer["metadata"]["generation"]
        informer = Informer(self.client, path)
        try:
            await informer.wait_for(
                lambda now: all(
                    key in now and now[key]["metadata"]["generation"] >= generation and is_available(now[key])
                    for key, generation in wanted.items()
                ),
                SETTLE_SECONDS,
            )
        finally:
            await informer.stop()


async def judge(name: str, run: Callable[[Script], Awaitable[None]], arguments: argparse.Namespace) -> JSON:
    """Run a procedure under the prober's eyes; the result as printed.

    Raises:
        ApiError, httpx.HTTPError, OSError: The lab does not answer, or refuses a step.
        TimeoutError: A step has no end.
    """
    kubeconfig: Path = arguments.kubeconfig
    directory = kubeconfig.parent
    async with (
        KubeClient.from_kubeconfig(kubeconfig, user_agent=name) as client,
        httpx.AsyncClient(base_url=arguments.control, trust_env=False) as control,
    ):
        script = Script(client, control, directory, arguments)
        (await control.post("/prober/reset")).raise_for_status()
        begin = time.monotonic()
        await run(script)
        seconds = time.monotonic() - begin
        # Workloads that nobody restarts live on what they have until their leaves are renewed.
        await asyncio.sleep(arguments.watch_seconds)
        counted = (await control.get("/prober")).json()
    failures = counted.pop("failures")
    return {
        "procedure": name,
        "seconds": round(seconds, 1),
        "steps": script.steps,
        "handshakes": {"attempted": counted["attempted"], "failed": counted["failed"]},
        "first_failures": failures[:3],
    }


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that all of them have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--kubeconfig", type=Path, required=True)
    found.add_argument("--control", required=True, help="the lab's control URL (lab.json)")
    found.add_argument("--vault", type=Path, help="vault.json of the lab's Key Vault; default: beside the kubeconfig")
    found.add_argument("--watch-seconds", type=float, default=40.0, help="how long to go on counting afterwards")
    return found


def main(name: str, run: Callable[[Script], Awaitable[None]], arguments: argparse.Namespace) -> int:
    """Run, print, and return the exit code."""
    sys.stdout.write(json.dumps(asyncio.run(judge(name, run, arguments)), indent=2) + "\n")
    return 0
