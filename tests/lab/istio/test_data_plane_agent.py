"""istio-agent: when it asks for a leaf, when it takes other roots, and what it trusts istiod by."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.lab import pki
from infra.lab.istio.agent import STUCK, Agent, renewal_ratio, seconds
from infra.lab.istio.material import Key, merged_roots
from infra.lab.istio.mounted import CHAIN_FILE, KEY_FILE, ROOTS_FILE, MountedCertificates
from infra.lab.istio.sidecar import ROOTS_KEY, ROOTS_MOUNT, TOKEN_FILE
from tests.lab.istio.data_plane import WEB, Ca, SigningServer, container, log_of, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from infra.lab.istio.material import Material
    from infra.lab.kubelet.runtime import Container


def mount(target: Container, roots_pem: str, token: str = "the-token") -> None:
    """What the kubelet shows the agent."""
    for name, text in ((f"{ROOTS_MOUNT}/{ROOTS_KEY}", roots_pem), (TOKEN_FILE, token)):
        path = target.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextlib.asynccontextmanager
async def agent(target: Container, server: SigningServer) -> AsyncIterator[list[Material]]:
    """A running agent; every state it has delivered."""
    delivered: list[Material] = []
    running = Agent(target, WEB, server.resolve, delivered.append, rng=random.Random(1))
    task = asyncio.create_task(running.run())
    try:
        yield delivered
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_answers_last_element_becomes_the_roots_and_the_rest_the_chain(tmp_path: Path) -> None:
    ca, other = Ca.mint(), Ca.mint("Root CA 2")
    server = SigningServer(ca, roots_pem=ca.roots_pem + other.roots_pem)
    target = container(tmp_path)
    mount(target, ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered)
        (material,) = delivered
        assert [pki.fingerprint(root) for root in material.roots] == [ca.root.fingerprint, other.root.fingerprint]
        assert list(material.chain[1:]) == [ca.intermediate.certificate]
        request, metadata = server.requests[0]
        assert request.validity_seconds == 60
        assert request.metadata == {"ClusterID": "Kubernetes"}
        assert (metadata["authorization"], metadata["clusterid"]) == ("Bearer the-token", "Kubernetes")

    asyncio.run(script())


def test_trust_changes_only_when_the_leaf_is_renewed_at_half_of_its_life(tmp_path: Path) -> None:
    ca, other = Ca.mint(), Ca.mint("Root CA 2")
    server = SigningServer(ca, seconds=2)
    target = container(tmp_path, env={"SECRET_TTL": "2s"})
    mount(target, ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered)
            server.roots_pem = ca.roots_pem + other.roots_pem
            mount(target, server.roots_pem)
            await until(lambda: len(delivered) == 2)
        first, second = delivered
        waited = (second.leaf_updated - first.leaf_updated).total_seconds()
        assert 0.4 < waited < 1.5  # whole seconds in certificates make two seconds of life one to two
        assert len(first.roots) == 1
        assert len(second.roots) == 2
        assert second.roots_updated > first.roots_updated
        assert second.key_pem != first.key_pem

    asyncio.run(script())


def test_a_renewal_that_brings_the_same_roots_leaves_the_time_of_rootca_alone(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint(), seconds=2)
    target = container(tmp_path)
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: len(delivered) == 2)
        assert delivered[0].roots_updated == delivered[1].roots_updated

    asyncio.run(script())


def test_renewals_are_spread_by_one_per_cent_around_half() -> None:
    rng = random.Random(7)
    ratios = [renewal_ratio(0.5, 0.01, rng) for _ in range(500)]
    assert 0.49 <= min(ratios) < 0.4925
    assert 0.5075 < max(ratios) <= 0.51
    assert renewal_ratio(1.0, 0.5, random.Random(2)) <= 1.0


def test_a_stuck_agent_signs_once_and_keeps_its_leaf_until_it_has_expired(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint(), seconds=1)
    target = container(tmp_path, annotations={STUCK: "true"})
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered)
            await asyncio.sleep(1.2)
            assert len(delivered) == len(server.requests) == 1

    asyncio.run(script())


class NearlyDue(random.Random):
    """An agent that finds its first leaf nearly half spent."""

    def random(self) -> float:
        return 0.999


def test_in_a_lab_the_first_renewals_are_spread_over_the_half_life(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint(), seconds=60)
    target = container(tmp_path, env={"LAB_FIRST_RENEWAL": "random"})
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        delivered: list[Material] = []
        running = asyncio.create_task(Agent(target, WEB, server.resolve, delivered.append, rng=NearlyDue()).run())
        async with server.running():
            await until(lambda: len(delivered) == 2)
            await asyncio.sleep(0.2)
            assert len(delivered) == 2  # only the first one comes early
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(script())


def test_a_pushed_bundle_is_united_with_the_answers_roots_and_brings_a_new_leaf_at_once(tmp_path: Path) -> None:
    ca, other = Ca.mint(), Ca.mint("Root CA 2")
    server = SigningServer(ca)
    target = container(tmp_path, env={"PROXY_CONFIG_XDS_AGENT": "true"})
    mount(target, ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered and server.bundles)
            server.push(other.roots_pem)
            await until(lambda: len(server.requests) == 2 and len(delivered) == 3)
            wanted = merged_roots(ca.roots_pem, other.roots_pem)
            assert [m.roots_pem for m in delivered] == [ca.roots_pem, wanted, wanted]
            assert delivered[1].leaf == delivered[0].leaf  # the roots first
            assert delivered[2].leaf != delivered[0].leaf
            server.push(other.roots_pem)  # the same text
            await asyncio.sleep(0.2)
            assert len(server.requests) == 2
            server.push(other.roots_pem * 2)  # the same roots, another text: upstream's way to a new leaf
            await until(lambda: len(server.requests) == 3)
            await until(lambda: len(delivered) == 4)
            assert delivered[3].roots_pem == wanted

    asyncio.run(script())


def test_without_the_xds_agent_pushes_change_nothing(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    target = container(tmp_path)
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered and server.bundles)
            server.push(Ca.mint("Root CA 2").roots_pem)
            await asyncio.sleep(0.2)
            assert len(delivered) == len(server.requests) == 1

    asyncio.run(script())


def test_roots_are_united_without_repetition_and_in_the_order_of_their_text() -> None:
    one, two = Ca.mint("Root CA").roots_pem, Ca.mint("Root CA 2").roots_pem
    assert merged_roots(two + one, two) == "".join(sorted((one, two)))
    assert merged_roots("", one) == one
    with pytest.raises(ValueError, match="PEM"):
        merged_roots("garbage")


def test_the_mounted_roots_are_read_anew_only_after_a_failed_csr(tmp_path: Path) -> None:
    old, new = Ca.mint("Root CA"), Ca.mint("Root CA 2")
    server = SigningServer(old)
    target = container(tmp_path)
    mount(target, new.roots_pem)  # not those of the istiod that answers: the kubelet is late

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await asyncio.sleep(0.3)
            assert delivered == []
            assert server.requests == []
            mount(target, old.roots_pem)
            await until(lambda: delivered)

    asyncio.run(script())


def test_istiod_is_verified_as_go_does_it_also_with_two_roots_of_one_name(tmp_path: Path) -> None:
    old, new = (Ca.mint("Root CA", identifiers=False) for _ in range(2))
    server = SigningServer(new)
    target = container(tmp_path)
    mount(target, old.roots_pem + new.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: delivered)

    asyncio.run(script())


def test_an_answer_without_roots_is_no_answer(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    server.chain = (server.ca.roots_pem,)
    target = container(tmp_path)
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: len(server.requests) > 1)
            assert delivered == []
        assert "invalid empty CertChain: 1 elements" in log_of(target)

    asyncio.run(script())


def test_a_leaf_for_another_key_is_rejected_as_envoy_rejects_it(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    foreign = server.ca.material(WEB, tmp_path / "other")
    server.chain = (foreign.chain_pem, server.ca.roots_pem)
    target = container(tmp_path)
    mount(target, server.ca.roots_pem)

    async def script() -> None:
        async with server.running(), agent(target, server) as delivered:
            await until(lambda: len(server.requests) > 1)
            assert delivered == []
        text = log_of(target)
        assert "the proxy rejects the answer of the CA" in text
        assert "PRIVATE KEY" not in text

    asyncio.run(script())


def test_keys_are_rsa_unless_the_mesh_asks_for_elliptic_ones(tmp_path: Path) -> None:
    key = Key.generate(WEB, elliptic=False)
    assert isinstance(key.private, rsa.RSAPrivateKey)
    assert key.pem.startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    csr = x509.load_pem_x509_csr(key.csr_pem.encode())
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    material = Ca.mint().material(WEB, tmp_path)
    assert "PRIVATE KEY" not in repr(material)


@pytest.mark.parametrize(("text", "expected"), [("40s", 40), ("24h0m0s", 86400), ("1.5h", 5400), ("500ms", 0.5)])
def test_durations_are_gos(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "40", "1d", "s"])
def test_what_is_no_duration_of_gos_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        seconds(text)


def test_certificates_mounted_from_citadels_secret_are_followed(tmp_path: Path) -> None:
    ca, other = Ca.mint(), Ca.mint("Root CA 2")
    target = container(tmp_path, env={"CA_ADDR": "", "LAB_CERT_WATCH_SECONDS": "0.1"})
    delivered: list[Material] = []

    def write(signer: Ca) -> None:
        material = signer.material(WEB, tmp_path / "scratch")
        texts = {CHAIN_FILE: material.chain_pem, KEY_FILE: material.key_pem.decode(), ROOTS_FILE: material.roots_pem}
        for name, text in texts.items():
            target.path(name).parent.mkdir(parents=True, exist_ok=True)
            target.path(name).write_text(text)

    async def script() -> None:
        running = asyncio.create_task(MountedCertificates(target, WEB, delivered.append).run())
        try:
            await asyncio.sleep(0.25)
            assert delivered == []
            write(ca)
            await until(lambda: delivered)
            write(other)
            await until(lambda: len(delivered) == 2)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert [m.roots[0] for m in delivered] == [ca.root.certificate, other.root.certificate]

    asyncio.run(script())
