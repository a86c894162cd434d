"""Citadel 1.3 against every trace recorded from the real one; its 60 s resync is scaled by the lab's variable."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.lab.apiserver import ApiServer
from infra.lab.client import ApiError, KubeClient
from infra.lab.istio.citadel.program import program
from infra.lab.kubelet.runtime import SERVICE_ACCOUNT_DIRECTORY, Container
from infra.lab.objects import create
from tests.lab.istio import istiod_replay as lab

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

JSON = dict[str, Any]
TRACES = Path(__file__).parents[2] / "vectors/controllers/istio-citadel"
NAMESPACES = ("cit-system", "cit-a", "cit-new")
RESYNC = 1.5
NOT_SERVED = "Starting GRPC server"  # not served, so not said


def load(name: str) -> JSON:
    trace: JSON = json.loads((TRACES / f"{name}.json").read_text())
    return trace


def recorded(trace: JSON, begin: int = 0, end: int = 10**9) -> list[str]:
    events = [e for e in trace["events"] if e["source"] == "log" and begin <= e["t_ms"] < end]
    return once(sorted(lab.normal(e["line"]) for e in events if NOT_SERVED not in e["line"]))


def once(lines: list[str]) -> list[str]:
    """Without repeated looks at istio-ca-secret: the real ones are at most one per 30 s, which here is a moment."""
    return [line for n, line in enumerate(lines) if "Skip reloading" not in line or line not in lines[:n]]


@dataclass
class Citadel:
    """One Citadel after another on one API server."""

    api: ApiServer
    client: KubeClient
    directory: Path
    container: Container | None = None
    running: asyncio.Task[int] | None = None
    ip: str = field(default_factory=lambda: f"127.252.{random.randint(1, 254)}.{random.randint(2, 254)}")
    _count: Any = field(default_factory=itertools.count)

    async def start(self, resync: float = 60.0) -> None:
        number = next(self._count)
        self.container = Container(
            pod={"metadata": {"name": f"istio-citadel-{number}", "namespace": "cit-system", "uid": "u"}},
            name="citadel",
            image="docker.io/istio/citadel:1.3.8",
            root=self.directory / f"layer-{number}",
            args=[
                "--self-signed-ca=true",
                "--citadel-storage-namespace=cit-system",
                f"--listened-namespaces={','.join(NAMESPACES)}",
            ],
            env={"LAB_RESYNC_SECONDS": str(resync)},
            ip=self.ip,
            api=self.api.url,
            mounts={SERVICE_ACCOUNT_DIRECTORY: self.directory / "account"},
        )
        self.running = asyncio.create_task(program(self.container))
        async with asyncio.timeout(10):
            while not self.container.ready and not self.running.done():
                await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """SIGKILL, after a SIGTERM that did nothing."""
        assert self.container is not None
        assert self.running is not None
        self.container.stopping.set()
        await asyncio.sleep(0.1)
        assert not self.running.done()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.container.close()

    def log(self) -> list[str]:
        """Normal lines of this process, sorted: its parts do not wait for each other."""
        assert self.container is not None
        entries: list[str] = []
        for line in self.container.logs.lines():
            if line.text[:2] == "20":
                entries.append(line.text)
            else:
                entries[-1] += f"\n{line.text}"
        return once(sorted(lab.normal(entry) for entry in entries))

    async def logged(self, text: str, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while sum(text in line for line in self.log()) < count:
                await asyncio.sleep(0.005)

    async def secret(self, name: str, namespace: str = "cit-a") -> dict[str, str]:
        item = await self.client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return {key: base64.b64decode(value).decode() for key, value in item["data"].items()}

    async def roots(self) -> set[str]:
        """The different root-cert.pem of all workload Secrets."""
        found = await self.client.list("/api/v1/secrets", fieldSelector="type=istio.io/key-and-cert")
        return {base64.b64decode(item["data"]["root-cert.pem"]).decode() for item in found["items"]}

    async def patch(self, name: str, namespace: str, **values: str) -> None:
        data = {f"{k.replace('_', '-')}.pem": base64.b64encode(v.encode()).decode() for k, v in values.items()}
        await self.client.patch(f"/api/v1/namespaces/{namespace}/secrets/{name}", {"data": data})

    async def published(self) -> str:
        item = await self.client.get("/api/v1/namespaces/cit-system/configmaps/istio-security")
        return base64.b64decode(item["data"]["caTLSRootCert"]).decode()

    async def account(self, name: str, namespace: str = "cit-a") -> None:
        metadata = {"name": name, "namespace": namespace}
        await create(self.client, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})


@contextlib.asynccontextmanager
async def session(directory: Path) -> AsyncIterator[Citadel]:
    """Namespaces with service accounts `default` (and cit-a with `web`), and Citadel's permissions."""
    api = ApiServer(directory / "api")
    await api.start()
    client = KubeClient.from_kubeconfig(api.kubeconfig)
    run = Citadel(api, client, directory)
    try:
        for namespace in ("cit-system", "cit-a"):
            await create(client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for namespace, name in (("cit-system", "default"), ("cit-a", "default"), ("cit-a", "web")):
            await run.account(name, namespace)
        metadata = {"name": "citadel"}
        group = "rbac.authorization.k8s.io"
        everything = [{"apiGroups": [""], "resources": ["*"], "verbs": ["*"]}]
        role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": everything}
        await create(client, role)
        binding = {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "citadel"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "cit-system"}],
        }
        await create(client, binding)
        account = directory / "account"
        account.mkdir()
        (account / "ca.crt").write_text(api.ca_pem)
        path = "/api/v1/namespaces/cit-system/serviceaccounts/default/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        (account / "token").write_text((await client.create(path, body))["status"]["token"])
        yield run
    finally:
        if run.running is not None and run.container is not None:
            run.running.cancel()
            await asyncio.gather(run.running, return_exceptions=True)
            await run.container.close()
        await client.close()
        await api.stop()


def run(directory: Path, script: Callable[[Citadel], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with session(directory) as citadel:
            await script(citadel)

    asyncio.run(whole())


@pytest.mark.slow
def test_01_a_first_start_gives_every_service_account_its_secret_and_repairs_it(tmp_path: Path) -> None:
    trace = load("01-self-signed-first-start")
    second = next(e["t_ms"] for e in trace["events"] if e.get("what", "").startswith("second start"))

    async def script(citadel: Citadel) -> None:
        await citadel.start()
        await citadel.logged("is created successfully", 3)
        ca = await citadel.secret("istio-ca-secret", "cit-system")
        assert [key for key, value in sorted(ca.items()) if value] == ["ca-cert.pem", "ca-key.pem"]
        root = ca["ca-cert.pem"]
        assert lab.shape(x509.load_pem_x509_certificate(root.encode())) == lab.recorded_shape(trace["certs"]["cert-2"])
        assert await citadel.published() == root
        item = await citadel.client.get("/api/v1/namespaces/cit-a/secrets/istio.web")
        assert item["type"] == "istio.io/key-and-cert"
        assert item["metadata"]["annotations"] == {"istio.io/service-account.name": "web"}
        first = await citadel.secret("istio.web")
        assert set(first) == {"cert-chain.pem", "key.pem", "root-cert.pem"}
        assert first["root-cert.pem"] == root
        assert first["key.pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
        leaf = x509.load_pem_x509_certificate(first["cert-chain.pem"].encode())
        assert lab.shape(leaf) == lab.recorded_shape(trace["certs"]["cert-5"])
        await citadel.account("late")
        await citadel.logged("Secret cit-a/istio.late is created successfully")
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.logged("Secret cit-new/istio.default is created successfully")
        await citadel.client.delete("/api/v1/namespaces/cit-a/secrets/istio.web")
        await citadel.logged("Secret cit-a/istio.web is created successfully", 2)
        again = await citadel.secret("istio.web")
        assert again["key.pem"] != first["key.pem"]
        await citadel.client.delete("/api/v1/namespaces/cit-a/serviceaccounts/late")
        await citadel.logged("Secret cit-a/istio.late deleted successfully")
        with pytest.raises(ApiError, match="404"):
            await citadel.secret("istio.late")
        await citadel.patch("istio.web", "cit-a", root_cert="garbage")
        await citadel.logged("Secret cit-a/istio.istio.web refreshed successfully.")
        repaired = await citadel.secret("istio.web")
        assert repaired["root-cert.pem"] == root
        assert repaired["key.pem"] != again["key.pem"]
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://{citadel.ip}:15014/metrics")).text
        end = x509.load_pem_x509_certificate(root.encode()).not_valid_after_utc
        assert f"citadel_server_citadel_root_cert_expiry_timestamp {end.timestamp():.0f}\n" in text
        await citadel.kill()
        assert citadel.log() == recorded(trace, end=second)
        await citadel.start()
        await citadel.logged("adding registry entry", 5)
        await citadel.kill()
        assert citadel.log() == recorded(trace, begin=second)

    run(tmp_path, script)


@pytest.mark.slow
@pytest.mark.parametrize("trace_name", ["02-root-replaced-same-key", "03-root-replaced-new-key"])
def test_02_03_after_a_restart_every_secret_follows_a_replaced_root_at_the_first_resync(
    tmp_path: Path, trace_name: str
) -> None:
    trace = load(trace_name)
    same_key = trace_name.startswith("02")

    async def script(citadel: Citadel) -> None:
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.start()
        await citadel.logged("is created successfully", 4)
        ca = await citadel.secret("istio-ca-secret", "cit-system")
        key = None
        if same_key:
            key = rsa_key(ca["ca-key.pem"])
        renewed = lab.root("cluster.local", "", key=key)
        before = citadel.log()
        await citadel.patch("istio-ca-secret", "cit-system", ca_cert=renewed.pem, ca_key=renewed.key_pem)
        await asyncio.sleep(0.3)
        assert citadel.log() == before  # a running Citadel does not look
        await citadel.kill()
        await citadel.start(RESYNC)
        assert await citadel.published() == renewed.pem
        assert await citadel.roots() == {ca["ca-cert.pem"]}
        await citadel.logged("refreshed successfully.", 4)
        assert await citadel.roots() == {renewed.pem}
        await citadel.kill()
        starts = [e["t_ms"] for e in trace["events"] if e.get("what") == "start citadel"]
        begin, end = (starts[1], 10**9) if same_key else (starts[0], starts[1])
        assert citadel.log() == recorded(trace, begin, end)
        if not same_key:
            await citadel.patch("istio-ca-secret", "cit-system", ca_key=ca["ca-key.pem"])
            await citadel.start()
            assert citadel.running is not None
            assert await citadel.running == 255
            assert citadel.log() == recorded(trace, starts[1])

    run(tmp_path, script)


def rsa_key(pem: str) -> rsa.RSAPrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


@pytest.mark.slow
def test_06_a_running_citadel_adopts_a_new_root_only_when_it_meets_a_secret_with_another(tmp_path: Path) -> None:
    trace = load("06-root-replaced-while-running")
    new = lab.root("cluster.local", "")

    async def script(citadel: Citadel) -> None:
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.start(1.2)
        await citadel.logged("is created successfully", 4)
        old = (await citadel.secret("istio-ca-secret", "cit-system"))["ca-cert.pem"]
        await citadel.patch("istio-ca-secret", "cit-system", ca_cert=new.pem, ca_key=new.key_pem)
        await asyncio.sleep(1.4)  # the resync finds nothing: the Secrets hold what the memory holds
        assert await citadel.roots() == {old}
        await citadel.client.delete("/api/v1/namespaces/cit-a/secrets/istio.web")
        await citadel.logged("Secret cit-a/istio.web is created successfully", 2)
        await citadel.account("fresh")
        await citadel.logged("Secret cit-a/istio.fresh is created successfully")
        assert await citadel.roots() == {old}
        await citadel.patch("istio.web", "cit-a", root_cert="garbage")
        await citadel.logged("Secret cit-a/istio.istio.web refreshed successfully.")
        await citadel.logged("refreshed successfully.", 5)
        assert citadel.container is not None
        refreshed = [line.text for line in citadel.container.logs.lines() if "refreshed successfully." in line.text]
        assert "cit-a/istio.istio.web" in refreshed[0]  # until the next resync the fleet is mixed
        assert await citadel.roots() == {new.pem}
        await citadel.kill()
        assert citadel.log() == recorded(trace)

    run(tmp_path, script)
