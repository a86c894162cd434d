"""The proxy: what it trusts, what it presents, whom it refuses, and when that changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from infra.lab import pki
from infra.lab.kubelet.runtime import Container
from infra.lab.linkerd import proxy as proxies
from infra.lab.linkerd.certifier import RefreshPolicy
from infra.lab.linkerd.material import ECHO_PROTOCOL
from infra.lab.linkerd.proxy import Proxy
from infra.lab.linkerd.sidecar import END_ENTITY_MOUNT, TOKEN_MOUNT
from tests.lab.linkerd import identity_replay as lab
from tests.lab.linkerd.identity_replay import WEB, Replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

SUFFIX = "serviceaccount.identity.linkerd.cluster.local"
IDENTITY = f"linkerd-identity.linkerd.{SUFFIX}"


@dataclass
class SmallMesh:
    """identity with its own proxy, and as many workload proxies as a test asks for."""

    session: Replay
    version: str = "edge-26.8.3"
    tasks: list[asyncio.Task[int]] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)

    async def proxy(
        self, namespace: str, account: str, roots_pem: str, *, ip: str = "", env: dict[str, str] | None = None
    ) -> Proxy:
        """A running proxy; not waited for."""
        number = len(self.containers)
        token = await self.session.token(namespace, account, "identity.l5d.io")
        directory = self.session.directory / f"proxy-{number}"
        (directory / "token").mkdir(parents=True)
        (directory / "token/linkerd-identity-token").write_text(token)
        container = Container(
            pod={"metadata": {"name": f"{account}-{number}", "namespace": namespace, "uid": f"uid-{number}"}},
            name="linkerd-proxy",
            image=f"cr.l5d.io/linkerd/proxy:{self.version}",
            root=directory / "layer",
            ip=ip or f"127.251.{random.randint(1, 254)}.{random.randint(2, 254)}",
            mounts={END_ENTITY_MOUNT: directory / "end-entity", TOKEN_MOUNT: directory / "token"},
            env={
                proxies.TRUST_ANCHORS: roots_pem,
                proxies.LOCAL_NAME: f"{account}.{namespace}.{SUFFIX}",
                proxies.SERVICE_NAME: IDENTITY,
                proxies.SERVICE_ADDRESS: "linkerd-identity-headless.linkerd.svc.cluster.local.:8080",
                proxies.TOKEN_FILE: f"{TOKEN_MOUNT}/linkerd-identity-token",
                proxies.DIRECTORY: END_ENTITY_MOUNT,
                proxies.MIN_REFRESH: "200ms",
                **(env or {}),
            },
        )
        proxy = Proxy(container, lambda _: f"{self.session.ip}:4143")
        self.containers.append(container)
        self.tasks.append(asyncio.create_task(proxy.run()))
        return proxy

    async def identity_proxy(self, roots_pem: str) -> Proxy:
        env = {proxies.SERVICE_ADDRESS: "localhost.:8080", proxies.INBOUND_PORTS: "8080,9990"}
        return await self.proxy("linkerd", "linkerd-identity", roots_pem, ip=self.session.ip, env=env)


async def ready(*running: Proxy, seconds: float = 5) -> None:
    """Until all of them are ready."""
    async with asyncio.timeout(seconds):
        while not all(proxy.container.ready for proxy in running):
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def small_mesh(directory: Path, root: pki.KeyPair, issuer: pki.KeyPair, **start: str) -> AsyncIterator[SmallMesh]:
    async with lab.replay(directory) as session:
        session.give_roots(root)
        session.give_pair(issuer)
        session.start(**start)  # type: ignore[arg-type]
        await session.wait_ready()
        mesh = SmallMesh(session)
        try:
            await ready(await mesh.identity_proxy(root.certificate_pem))
            yield mesh
        finally:
            for container in mesh.containers:
                container.stopping.set()
            await asyncio.gather(*mesh.tasks, return_exceptions=True)


def run(directory: Path, root: pki.KeyPair, script: Callable[[SmallMesh], Awaitable[None]], **start: str) -> None:
    async def whole() -> None:
        async with small_mesh(directory, root, pki.mint_issuer(root, now=NOW), **start) as mesh:
            await script(mesh)

    asyncio.run(whole())


NOW = datetime.now(UTC)
ROOT = pki.mint_root(now=NOW)
STRANGER = pki.mint_root(now=NOW, name="root.elsewhere.example")


def plain_client(root: pki.KeyPair = ROOT, *, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root.certificate_pem)
    context.set_alpn_protocols([ECHO_PROTOCOL])
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


async def echo(ip: str, context: ssl.SSLContext, name: str, port: int = proxies.INBOUND_PORT) -> bytes:
    reader, writer = await asyncio.open_connection(ip, port, ssl=context, server_hostname=name)
    try:
        writer.write(b"?")
        return await asyncio.wait_for(reader.readexactly(1), 5)
    finally:
        writer.close()


def leaf_under(root: pki.KeyPair, path: Path, name: str = WEB) -> Path:
    """A PEM file with key and a workload leaf signed directly by `root`."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        .sign(root.key, hashes.SHA256())
    )
    pair = pki.KeyPair(certificate, key)
    path.write_text(pair.key_pem + pair.certificate_pem)
    return path


def test_a_proxy_serves_tls_1_3_under_its_own_name_and_verifies_client_certificates(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem)
        await ready(web)
        ip = web.container.ip
        # Without a client certificate, and with a good one.
        assert await echo(ip, plain_client(), WEB) == b"?"
        assert await echo(ip, plain_client(certificate=leaf_under(ROOT, tmp_path / "good.pem")), WEB) == b"?"
        # With one that nobody here trusts: the refusal arrives after the client's own handshake is done.
        bad = plain_client(certificate=leaf_under(STRANGER, tmp_path / "bad.pem"))
        with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)) as refusal:
            await echo(ip, bad, WEB)
        assert "unknown ca" in str(refusal.value).lower()
        # Another name, another root, an old protocol.
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await echo(ip, plain_client(), f"other.emoji.{SUFFIX}")
        with pytest.raises(ssl.SSLCertVerificationError):
            await echo(ip, plain_client(STRANGER), WEB)
        old = plain_client()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await echo(ip, old, WEB)

    run(tmp_path, ROOT, script)


def test_the_admin_port_speaks_http_and_tls_and_tells_what_the_proxy_holds(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem)
        await ready(web)
        ip = web.container.ip
        async with httpx.AsyncClient(base_url=f"http://{ip}:4191", trust_env=False) as client:
            assert (await client.get("/ready")).status_code == 200
            assert (await client.get("/live")).status_code == 200
            metrics = (await client.get("/metrics")).text
            answer = (await client.get(f"/env.json?{proxies.TRUST_ANCHORS}&NO_SUCH_VARIABLE")).json()
        assert answer == {proxies.TRUST_ANCHORS: ROOT.certificate_pem, "NO_SUCH_VARIABLE": None}
        assert web.material is not None
        end = web.material.leaf.not_valid_after_utc.timestamp()
        assert f"control_identity_cert_expiration_timestamp_seconds {end:.0f}" in metrics
        assert 'control_identity_cert_refreshes_total{result="ok"} 1' in metrics
        # The same port, as `linkerd identity` asks it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(ip, 4191, ssl=context, server_hostname=WEB)
        served = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
        assert served == web.material.leaf
        writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        # And it refuses strangers there too.
        bad = plain_client(certificate=leaf_under(STRANGER, tmp_path / "bad.pem"))
        with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
            await echo(ip, bad, WEB, port=4191)

    run(tmp_path, ROOT, script)


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        ("stable-2.14.10", "identity_cert_refresh_count", "identity_cert_refreshes_total"),
        ("stable-2.15.0", "identity_cert_refreshes_total", "control_identity_cert"),
        ("edge-24.8.2", "control_identity_cert_refreshes_total", "identity_cert_refresh_count"),
    ],
)
def test_the_certificate_metrics_have_the_names_of_the_version(
    tmp_path: Path, version: str, present: str, absent: str
) -> None:
    async def script(mesh: SmallMesh) -> None:
        mesh.version = version
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem)
        await ready(web)
        async with httpx.AsyncClient(base_url=f"http://{web.container.ip}:4191", trust_env=False) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        assert any(line.startswith(present) for line in lines)
        assert not any(line.startswith(absent) for line in lines)

    run(tmp_path, ROOT, script)


def test_a_proxy_whose_roots_do_not_verify_identity_never_becomes_ready(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", STRANGER.certificate_pem)
        await asyncio.sleep(0.6)
        assert not web.container.ready
        assert web.material is None
        log = "\n".join(lab.log_lines(web.container))
        assert "Failed to obtain identity" in log
        async with httpx.AsyncClient(base_url=f"http://{web.container.ip}:4191", trust_env=False) as client:
            assert (await client.get("/ready")).status_code == 503

    run(tmp_path, ROOT, script)


def test_a_proxy_without_a_usable_root_exits_with_an_error(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        for roots in ("no certificates here", ROOT.certificate_pem.replace("MII", "AAA", 1)):
            await mesh.proxy("emoji", "web", roots)
            assert await asyncio.wait_for(mesh.tasks[-1], 2) == 1

    run(tmp_path, ROOT, script)


def test_a_leaf_is_renewed_at_70_percent_of_what_remains_within_the_bounds() -> None:
    policy = RefreshPolicy()
    now = datetime(2026, 11, 21, tzinfo=UTC)
    day = timedelta(hours=24, seconds=20)
    assert policy.wait(now + day, now) == day * 0.7
    assert policy.wait(now + timedelta(seconds=5), now) == timedelta(seconds=10)
    assert policy.wait(now - timedelta(seconds=5), now) == timedelta(seconds=10)
    assert policy.wait(None, now) == timedelta(seconds=10)
    assert policy.wait(now + timedelta(days=365), now) == timedelta(hours=24)


@pytest.mark.slow
def test_after_its_leaf_has_expired_a_proxy_cannot_renew_any_more(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem, env={proxies.MIN_REFRESH: "6s"})
        await ready(web)
        assert web.material is not None
        first = web.material.leaf
        # The floor of its renewal interval is longer than the leaf lives, so the leaf runs out before the next try.
        await asyncio.sleep((first.not_valid_after_utc - datetime.now(UTC)).total_seconds() + 3.5)
        assert web.material.leaf == first
        assert "Failed to obtain identity" in lab.log_lines(web.container)[-1]

    run(tmp_path, ROOT, script, lifetime="3s", skew="1s")


@pytest.mark.slow
def test_leaves_change_while_the_listener_stays_and_no_handshake_fails(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem)
        await ready(web)
        seen = set()
        until = asyncio.get_running_loop().time() + 7
        while asyncio.get_running_loop().time() < until:
            assert await echo(web.container.ip, plain_client(), WEB) == b"?"
            assert web.material is not None
            seen.add(pki.fingerprint(web.material.leaf))
        assert len(seen) >= 3

    run(tmp_path, ROOT, script, lifetime="3s", skew="1s")


def test_end_entity_files_are_only_the_proxys_own(tmp_path: Path) -> None:
    async def script(mesh: SmallMesh) -> None:
        web = await mesh.proxy("emoji", "web", ROOT.certificate_pem)
        await ready(web)
        await echo(web.container.ip, plain_client(), WEB)
        directory = web.container.path(END_ENTITY_MOUNT)
        assert sorted(path.name for path in directory.iterdir()) == ["csr.der", "key.p8"]
        assert (directory / "key.p8").stat().st_mode & 0o077 == 0
        assert json.dumps(web.container.env).find("PRIVATE KEY") == -1

    run(tmp_path, ROOT, script)
