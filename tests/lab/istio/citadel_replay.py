"""Runs the lab's Citadel on the lab's API server, as the recorder ran the real one."""

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

from infra.lab.apiserver import ApiServer
from infra.lab.client import KubeClient
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

    async def start(
        self,
        resync: float = 60.0,
        *,
        args: tuple[str, ...] = ("--self-signed-ca=true", f"--listened-namespaces={','.join(NAMESPACES)}"),
        env: dict[str, str] | None = None,
        version: str = "1.3.8",
    ) -> None:
        number = next(self._count)
        self.container = Container(
            pod={"metadata": {"name": f"istio-citadel-{number}", "namespace": "cit-system", "uid": "u"}},
            name="citadel",
            image=f"docker.io/istio/citadel:{version}",
            root=self.directory / f"layer-{number}",
            args=["--citadel-storage-namespace=cit-system", *args],
            env={"LAB_RESYNC_SECONDS": str(resync), **(env or {})},
            ip=self.ip,
            api=self.api.url,
            mounts={SERVICE_ACCOUNT_DIRECTORY: self.directory / "account"},
        )
        self.running = asyncio.create_task(program(self.container))
        async with asyncio.timeout(lab.PATIENCE):
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
        async with asyncio.timeout(lab.PATIENCE):
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
