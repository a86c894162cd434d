"""How much a look at many proxies costs, and how much glances save over a whole wait. Not a test: run by hand.

    python -m tests.systems.istio.measure_looks --proxies 2000

1. A mesh of so many pods behind a real API (the lab's) and real port-forwards, one Envoy's admin port answering for all
   of them as constructed: seconds and requests of a whole look, and of a glance.
2. The wait for their leaves: so many leaves of 24 hours, whose ends are spread over half a day as in any mesh that has
   run for a while; a look every 30 s, and which proxies each reads.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import PODS
from capstan.pki.bundle import Bundle
from capstan.rotation.waiting import MAX_PAUSE
from capstan.systems.glancing import glance
from capstan.systems.istio.adapter import Istio
from capstan.systems.istio.memory import Memory
from capstan.systems.istio.proxies import ProxyReading
from capstan.trust.observation import Owner
from tests.support.apiserver import Running
from tests.support.istio_mesh import SYSTEM, IstioMesh, sidecar_spec
from tests.support.mesh import intermediate, leaf, root

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.pki.inspect import Certificate

LIFE = timedelta(hours=24)


def many(running: Running, cluster: Cluster, count: int) -> IstioMesh:
    """A mesh whose proxies all answer at one address."""
    mesh = IstioMesh(running, cluster)
    files = mesh.source.files
    key = mesh.issuer.key.pem().decode()
    mesh.cacerts({"ca-cert.pem": files.ca_cert, "cert-chain.pem": files.cert_chain, "root-cert.pem": files.root_cert,
                  "ca-key.pem": key})  # fmt: skip
    mesh.control_plane()
    mesh.places(SYSTEM, "shop")
    mesh.proxy("shop", "web-0")
    address = mesh.mesh._addresses["shop", "web-0"]
    spec = sidecar_spec()
    for number in range(1, count):
        name = f"web-{number}"
        metadata = {"name": name, "namespace": "shop"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec, "nodeName": "node-1"}}
        cluster.create(PODS, body)
        mesh.mesh._addresses["shop", name] = address
        mesh.mesh.set_status("shop", name, spec)
        mesh.connected.append(f"{name}.shop")
    return mesh


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def measure(count: int) -> None:
    """Print seconds and requests of a look and of a glance."""
    with tempfile.TemporaryDirectory() as directory:
        running = Running(Path(directory))
        cluster = running.connect()
        mesh = many(running, cluster, count)
        try:
            istio = Istio(cluster)
            for name in ("whole look", "glance", "glance"):
                before, began = cluster.requests, time.monotonic()
                seen = glance([istio], istio.observe) if name == "glance" else istio.observe()
                took, asked = time.monotonic() - began, cluster.requests - before
                unread = sum(1 for peer in seen.peers if peer.unreadable)
                say(f"{name:>10}: {len(seen.peers)} proxies, {unread} unread, {asked} requests, {took:.1f} s")
        finally:
            mesh.close()
            cluster.close()
            running.stop()


def simulate(count: int) -> None:
    """Print how many proxies are read in a wait, with whole looks and with glances."""
    began = datetime.now(UTC)
    at, until = began, began + LIFE / 2 + timedelta(minutes=15)
    ca = root("old", began - timedelta(days=2))
    signing = intermediate("Intermediate CA", ca, began - timedelta(days=2))
    born = [began - random.Random(n).random() * LIFE / 2 for n in range(count)]
    leaves: list[Certificate] = [leaf(signing, now=moment, life=LIFE) for moment in born]
    memory, looks, read = Memory(), 0, 0
    while at < until:
        looks += 1
        asked = []
        for number in range(count):
            pod = _pod(number)
            if looks > 1 and memory.recall(pod, at) is not None:
                continue
            while at >= leaves[number].not_before + timedelta(minutes=2) + LIFE / 2:  # its agent has renewed
                leaves[number] = leaf(signing, now=leaves[number].not_before + timedelta(minutes=2) + LIFE / 2)
            asked.append(_reading(pod, leaves[number], ca.certificate))
        memory.keep(asked, at)
        read += len(asked)
        at += timedelta(seconds=MAX_PAUSE)
    say(f"a wait of {(until - began) / timedelta(hours=1):.1f} h, {looks} looks at {count} proxies:")
    say(f"  whole looks read {looks * count:,}; glances read {read:,} ({looks * count / read:.0f} times fewer)")


def _pod(number: int) -> dict[str, Any]:
    running = {"running": {"startedAt": "2026-11-22T00:00:00Z"}}
    status = {"containerStatuses": [{"name": "istio-proxy", "containerID": "c", "state": running}]}
    metadata = {"name": f"web-{number}", "namespace": "shop", "uid": str(number)}
    return {"metadata": metadata, "spec": {"containers": []}, "status": status}


def _reading(pod: dict[str, Any], held: Certificate, anchor: Certificate) -> ProxyReading:
    owner = Owner("Pod", "shop", pod["metadata"]["name"])
    return ProxyReading(pod, owner, owner.name, "sidecar", {}, Bundle.of(anchor), (held,), None, "")


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--proxies", type=int, default=2000)
    parser.add_argument("--only", choices=["looks", "wait"])
    chosen = parser.parse_args()
    if chosen.only != "wait":
        measure(chosen.proxies)
    if chosen.only != "looks":
        simulate(chosen.proxies)


if __name__ == "__main__":
    main()
