"""A whole lab with Istio: it comes up, its leaves bring new roots, and its judge sees what a wrong order breaks."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509

from infra.lab import pki
from infra.lab.istio import hierarchy, manifests
from infra.lab.istio.manifests import encode
from infra.lab.istio.mesh import IstioMesh
from infra.lab.up import Lab, Options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from infra.lab.pki import KeyPair
    from infra.lab.prober import Prober

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JSON = dict[str, Any]
CACERTS = "/api/v1/namespaces/istio-system/secrets/cacerts"


class Running:
    """A lab and what the tests do with it."""

    def __init__(self, lab: Lab) -> None:
        assert isinstance(lab.mesh, IstioMesh)
        assert lab.prober is not None
        self.lab, self.mesh, self.prober = lab, lab.mesh, lab.prober

    async def first_root(self) -> tuple[KeyPair, KeyPair]:
        """The offline root and a new intermediate under it."""
        directory = self.lab.options.directory / "offline-ca"
        root = hierarchy.load(directory / "root-cert.pem", directory / "root-key.pem")
        return root, hierarchy.mint_intermediate(root, now=datetime.now(UTC))

    async def write(self, intermediate: KeyPair | None, signer: KeyPair | None, roots: str) -> None:
        """A new cacerts: another intermediate (or the old one), and these roots."""
        data = {"root-cert.pem": encode(roots)}
        if intermediate is not None and signer is not None:
            data |= {
                "ca-cert.pem": encode(intermediate.certificate_pem),
                "ca-key.pem": encode(intermediate.key_pem),
                "cert-chain.pem": encode(intermediate.certificate_pem + signer.certificate_pem),
            }
        await self.lab.client.patch(CACERTS, {"data": data})

    async def wait_for_roots(self, *roots: KeyPair, seconds: float = 30.0) -> None:
        """Until every proxy trusts exactly these."""
        wanted = {root.certificate for root in roots}
        await self._wait(lambda: all(set(p.roots) == wanted for p in self.mesh.proxies.values()), seconds)

    async def wait_for_issuer(self, issuer: KeyPair, seconds: float = 30.0) -> None:
        """Until every proxy presents a leaf of `issuer`."""
        wanted = pki.subject_key(issuer.certificate)
        await self._wait(
            lambda: all(
                p.material and pki.authority_key(p.material.leaf) == wanted for p in self.mesh.proxies.values()
            ),
            seconds,
        )

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.1)


def run(directory: Path, script: Callable[[Running], Awaitable[None]], **chosen: Any) -> None:
    """Run a script against a small lab of its own in this process."""
    chosen = {"leaf_seconds": 10, "multiroot": True, **chosen}

    async def whole() -> None:
        options = Options(
            directory, system="istio", size="small", probes_per_second=60, istio=manifests.Options(**chosen)
        )
        lab = await Lab(options).start()
        try:
            await script(Running(lab))
        finally:
            await lab.stop()

    asyncio.run(whole())


def failures(prober: Prober) -> Counter[str]:
    return Counter(failure.error for failure in prober.counts.failures)


def test_a_root_rotation_in_three_phases_drops_no_handshake_between_light_proxies_envoys_and_gateways(
    tmp_path: Path,
) -> None:
    async def script(running: Running) -> None:
        old, _ = await running.first_root()
        new = hierarchy.mint_root(now=datetime.now(UTC), common_name="Root CA 2")
        issuer = hierarchy.mint_intermediate(new, now=datetime.now(UTC))
        both = old.certificate_pem + new.certificate_pem
        await running.write(None, None, both)
        await running.wait_for_roots(old, new)
        await running.write(issuer, new, both)
        await running.wait_for_issuer(issuer)
        await running.write(None, None, new.certificate_pem)
        await running.wait_for_roots(new)
        kinds = Counter(proxy.kind for proxy in running.mesh.proxies.values())
        assert kinds == {"light": 9, "envoy": 1, "gateway": 1}
        assert failures(running.prober) == {}
        assert running.prober.counts.attempted > 500
        clients, servers = zip(*running.prober.counts.pairs, strict=True)
        gateway = "istio-system/istio-ingressgateway"
        assert any(name.startswith(gateway) for name in clients)
        assert not any(name.startswith(gateway) for name in servers)
        await _envoy_agrees(running)

    run(tmp_path, script, envoys=1)


async def _envoy_agrees(running: Running) -> None:
    """What Envoy itself says that it holds is what its agent gave it."""
    (proxy,) = (proxy for proxy in running.mesh.proxies.values() if proxy.kind == "envoy")
    assert proxy.material is not None
    url = f"http://{proxy.container.ip}:15000/certs"
    async with httpx.AsyncClient(trust_env=False) as client:
        entries = (await client.get(url)).json()["certificates"]
    leaf, root = proxy.material.leaf.serial_number, proxy.material.roots[0].serial_number
    assert {int(e["cert_chain"][0]["serial_number"], 16) for e in entries} == {leaf}
    assert {int(e["ca_cert"][0]["serial_number"], 16) for e in entries} == {root}


@pytest.mark.long
def test_the_documented_two_steps_fail_between_workloads_that_have_renewed_and_those_that_have_not(
    tmp_path: Path,
) -> None:
    async def script(running: Running) -> None:
        old, _ = await running.first_root()
        new = hierarchy.mint_root(now=datetime.now(UTC), common_name="Root CA 2")
        issuer = hierarchy.mint_intermediate(new, now=datetime.now(UTC))
        await running.write(None, None, old.certificate_pem + new.certificate_pem)
        await running.wait_for_roots(old, new)
        assert failures(running.prober) == {}
        await running.write(issuer, new, new.certificate_pem)
        await running.wait_for_issuer(issuer)
        found = failures(running.prober)
        assert sum(found.values()) > 10
        assert any("certificate verify failed" in error for error in found)  # a new client, an old server
        assert any("alert unknown ca" in error for error in found)  # an old client, a new server

    run(tmp_path, script, envoys=1)


@pytest.mark.long
def test_pushed_bundles_reach_proxies_with_the_xds_agent_long_before_their_leaves_are_half_spent(
    tmp_path: Path,
) -> None:
    async def script(running: Running) -> None:
        old, _ = await running.first_root()
        new = hierarchy.mint_root(now=datetime.now(UTC), common_name="Root CA 2")
        issuer = hierarchy.mint_intermediate(new, now=datetime.now(UTC))
        both = old.certificate_pem + new.certificate_pem
        await running.write(None, None, both)
        await running.wait_for_roots(old, new, seconds=10)
        await running.write(issuer, new, both + new.certificate_pem)  # another text: sign again
        await running.wait_for_issuer(issuer, seconds=10)
        assert failures(running.prober) == {}

    # One istiod: with two, a proxy may hear of the bundle from one and be signed for by the other, not reloaded yet.
    run(tmp_path, script, xds_agent=True, leaf_seconds=600, replicas=1)


def test_a_self_signed_istiod_serves_sidecars_of_an_older_version_a_gateway_and_ambient_pods_through_ztunnel(
    tmp_path: Path,
) -> None:
    async def script(running: Running) -> None:
        secret = await running.lab.client.get("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
        assert secret["type"] == "istio.io/ca-root"
        pods = (await running.lab.client.get("/api/v1/namespaces/shop/pods"))["items"]
        names = {tuple(c["name"] for c in pod["spec"]["containers"]) for pod in pods}
        assert names == {("app", "istio-proxy")}
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while True:
                found = (await client.get(f"{running.lab.control_url}/pods")).json()
                tunnels = [entry for entry in found if entry["kind"] == "ztunnel"]
                if {e["identity"] for e in tunnels} >= AMBIENT and all(e["leaf"] for e in tunnels):
                    break
                await asyncio.sleep(0.2)
        roots = {tuple(entry["roots"]) for entry in found}
        assert len(roots) == 1
        assert {entry["leaf"]["issuer"] for entry in found} == {*roots.pop()}
        facts = json.loads((running.lab.options.directory / "lab.json").read_text())
        assert (facts["ca"], facts["istio_version"]) == ("self-signed", "1.24.6")
        assert failures(running.prober) == {}

    run(tmp_path, script, ca="self-signed", version="1.24.6", ambient=True, leaf_seconds=20)


@pytest.mark.long
def test_before_istiod_sidecars_shake_hands_with_what_citadel_writes_into_secrets(tmp_path: Path) -> None:
    async def script(running: Running) -> None:
        secret = await running.lab.client.get("/api/v1/namespaces/shop/secrets/istio.storefront")
        assert secret["type"] == "istio.io/key-and-cert"
        written = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["cert-chain.pem"]))
        held = {p.material.leaf for p in running.mesh.proxies.values() if p.material and p.name.endswith("/storefront")}
        assert held == {written}
        (pilot,) = (p for p in running.mesh.proxies.values() if p.name.endswith("/istio-pilot-service-account"))
        async with httpx.AsyncClient(trust_env=False) as client:
            found = (await client.get(f"http://{pilot.container.ip}:15000/certs")).json()
        assert found["certificates"][0]["cert_chain"][0]["path"] == "/etc/certs/cert-chain.pem"
        assert failures(running.prober) == {}

    run(tmp_path, script, ca="citadel", version="1.4.3", leaf_seconds=3600)


AMBIENT = {f"spiffe://cluster.local/ns/ambient/sa/{account}" for account in ("telemetry", "collector")}
