"""Logs and port-forwards reach a pod through the API server, with the official Python client and with kubectl."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from kubernetes import client as official
from kubernetes import config
from kubernetes.stream import portforward

from tests.lab.cluster.cluster_lab import PODS, pod, ready

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container
    from tests.lab.cluster.cluster_lab import ClusterLab

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")
SIZE = 300_000


async def upper(container: Container) -> int:
    """An echo server: what comes back is what was sent, in capitals."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, container.ip, 7000)
    container.set_ready(True)
    await container.stopping.wait()
    server.close()
    return 0


async def web(container: Container) -> int:
    """A web server with one big page."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + b"x" * SIZE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, container.ip, 8000)
    container.set_ready(True)
    await container.stopping.wait()
    server.close()
    return 0


def start(lab: ClusterLab, name: str, program: Any) -> None:
    async def script() -> None:
        lab.programs.register(name, program)
        await lab.client.create(PODS, pod(name, {"name": "main", "image": name}))
        await lab.pod(name, ready)

    lab.run(script())


@pytest.fixture(scope="module")
def core(lab: ClusterLab) -> official.CoreV1Api:
    """The official client; making the first one of a process takes it some seconds."""
    path = str(lab.server.kubeconfig)
    return official.CoreV1Api(config.new_client_from_config(path))  # type: ignore[no-untyped-call]  # it has no types


@pytest.mark.proves("api", "port-forward", "Python client, over WebSocket channels")
def test_the_python_client_forwards_bytes_both_ways(lab: ClusterLab, core: official.CoreV1Api) -> None:
    start(lab, "upper", upper)
    forward = portforward(core.connect_get_namespaced_pod_portforward, "upper", "default", ports="7000")
    socket = forward.socket(7000)
    socket.settimeout(5)
    payload = b"abc" * 50_000
    received = b""
    for start_at in range(0, len(payload), 10_000):
        socket.sendall(payload[start_at : start_at + 10_000])
        while len(received) < min(start_at + 10_000, len(payload)):
            received += socket.recv(65536)
    socket.close()
    assert received == payload.upper()
    assert forward.error(7000) is None


def test_the_python_client_learns_that_nobody_listens_on_a_port(lab: ClusterLab, core: official.CoreV1Api) -> None:
    start(lab, "deaf-port", upper)
    forward = portforward(core.connect_get_namespaced_pod_portforward, "deaf-port", "default", ports="7001")
    socket = forward.socket(7001)
    socket.settimeout(5)
    socket.sendall(b"hello?")
    assert socket.recv(10) == b""
    assert "failed to connect to port 7001: connection refused" in forward.error(7001)


@needs_kubectl
@pytest.mark.slow
@pytest.mark.proves("api", "port-forward", "kubectl, tunnelled through a WebSocket and over plain SPDY")
@pytest.mark.parametrize("websockets", ["true", "false"])
def test_kubectl_forwards_a_port_over_a_tunnel_and_over_plain_spdy(lab: ClusterLab, websockets: str) -> None:
    name = f"web-{websockets}"
    start(lab, name, web)
    environment = {
        **os.environ,
        "KUBECONFIG": str(lab.server.kubeconfig),
        "KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets,
    }
    command = ["kubectl", "port-forward", f"pod/{name}", ":8000", "--address", "127.0.0.1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Forwarding from 127.0.0.1:")
            port = int(line.split(":")[1].split()[0])
            for _ in range(3):
                assert len(httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=10).content) == SIZE
        finally:
            process.terminate()


@needs_kubectl
@pytest.mark.slow
def test_kubectl_rolls_out_waits_and_reads_logs(lab: ClusterLab) -> None:
    environment = {**os.environ, "KUBECONFIG": str(lab.server.kubeconfig)}

    def kubectl(*words: str) -> str:
        done = subprocess.run(
            ["kubectl", *words], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kubectl("create", "deployment", "shop", "--image=watched", "--replicas=2")
    kubectl("rollout", "status", "deployment/shop", "--timeout=20s")
    kubectl("rollout", "restart", "deployment/shop")
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/shop", "--timeout=20s")
    kubectl("wait", "--for=condition=Available", "deployment/shop", "--timeout=10s")
    kubectl("rollout", "undo", "deployment/shop")
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/shop", "--timeout=20s")
    kubectl("create", "job", "words", "--image=busybox", "--", "sh", "-c", "echo first; echo second")
    kubectl("wait", "--for=condition=Complete", "job/words", "--timeout=20s")
    assert kubectl("logs", "job/words", "--tail=1") == "second\n"
    began = time.monotonic()
    kubectl("delete", "deployment/shop", "job/words")
    assert time.monotonic() - began < 20
