"""kubectl and the official Python client through the API server to a running pod of the lab."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import kubernetes.client
import kubernetes.config
import kubernetes.stream
import pytest

from infra.lab.controllers import start_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from access_lab import Lab

KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def pod(lab: Lab) -> Iterator[str]:
    """The IP of pod web/web, on whose port 8080 something echoes."""
    handle = lab.run(start_cluster(lab.server.kubeconfig, nodes=1))
    lab.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web"}})
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}
    spec = {"containers": [{"name": "main", "image": "web:1"}]}
    path = "/api/v1/namespaces/web/pods"
    deadline = time.monotonic() + 20
    while lab.admin.get(f"{path.removesuffix('pods')}serviceaccounts/default").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.create(path, {**body, "spec": spec})
    while (status := lab.admin.get(f"{path}/web").json()["status"]).get("phase") != "Running":
        assert time.monotonic() < deadline, status
        time.sleep(0.05)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(echo, status["podIP"], 8080)

    server = lab.run(listen())
    yield status["podIP"]

    async def close() -> None:
        server.close()

    lab.run(close())
    lab.run(handle.stop())


@pytest.fixture(scope="module")
def core(lab: Lab) -> Any:
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(lab.server.kubeconfig), client_configuration=configuration)
    with kubernetes.client.ApiClient(configuration) as api:
        yield kubernetes.client.CoreV1Api(api)


def kubectl(lab: Lab, *words: str) -> str:
    assert KUBECTL is not None
    environment = {**os.environ, "KUBECONFIG": str(lab.server.kubeconfig), "HOME": str(lab.directory)}
    done = subprocess.run([KUBECTL, *words], env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def exchange(port: int, data: bytes) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(data)
        got = b""
        while len(got) < len(data):
            got += raw.recv(65536)
        return got


@pytest.mark.slow
def test_the_python_client_forwards_a_port_to_a_pod(pod: str, core: Any) -> None:
    forward = kubernetes.stream.portforward(core.connect_get_namespaced_pod_portforward, "web", "web", ports="8080")
    stream = forward.socket(8080)
    stream.setblocking(True)
    payload = os.urandom(200_000)
    stream.sendall(payload)
    got = b""
    while len(got) < len(payload):
        got += stream.recv(65536)
    assert got == payload
    assert forward.error(8080) is None
    forward.close()


@pytest.mark.slow
def test_the_python_client_reads_the_log_and_learns_why_it_cannot(pod: str, core: Any) -> None:
    assert isinstance(core.read_namespaced_pod_log("web", "web"), str)
    with pytest.raises(kubernetes.client.ApiException) as caught:
        core.read_namespaced_pod_log("web", "web", container="nope")
    assert caught.value.status == 400


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("websockets", ["true", "false"])
def test_kubectl_forwards_a_port_in_both_of_its_dialects(lab: Lab, pod: str, websockets: str) -> None:
    environment = {
        **os.environ,
        "KUBECONFIG": str(lab.server.kubeconfig),
        "HOME": str(lab.directory),
        "KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets,
    }
    assert KUBECTL is not None
    words = [KUBECTL, "port-forward", "-n", "web", "pod/web", ":8080"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout is not None
        port = int(forward.stdout.readline().split("->")[0].rpartition(":")[2])
        payload = os.urandom(100_000)
        assert exchange(port, payload) == payload
        assert exchange(port, b"again") == b"again"
        forward.terminate()


@pytest.mark.slow
@needs_kubectl
def test_kubectl_knows_who_it_is_and_what_it_may(lab: Lab, pod: str) -> None:
    assert "kubernetes-admin" in kubectl(lab, "auth", "whoami")
    assert kubectl(lab, "auth", "can-i", "list", "secrets").strip() == "yes"
    assert kubectl(lab, "auth", "can-i", "list", "secrets", "--as", "jane").strip() == "no"
    listed = kubectl(lab, "auth", "can-i", "--list", "--as", "system:serviceaccount:web:default")
    assert "selfsubjectaccessreviews.authorization.k8s.io" in listed
    token = kubectl(lab, "-n", "web", "create", "token", "default", "--duration", "10m").strip()
    answer = httpx.get(f"{lab.server.url}/api", verify=lab.context(), headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200


@pytest.mark.slow
@needs_kubectl
def test_kubectl_shows_logs_and_the_servers_reasons(lab: Lab, pod: str) -> None:
    assert "Error" not in kubectl(lab, "-n", "web", "logs", "web")
    assert "container nope is not valid for pod web" in kubectl(lab, "-n", "web", "logs", "web", "-c", "nope")
    assert "cannot get resource" in kubectl(lab, "-n", "web", "logs", "web", "--as", "jane")
