"""Commands run in a pod's containers, with the official Python client, with kubectl and with a bare SPDY client."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client as official
from kubernetes import config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.lab.cluster.cluster_lab import PODS, pod, ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.cluster.cluster_lab import ClusterLab

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")
SCRIPT = "echo to-out; echo to-err >&2; exit 3"


@pytest.fixture(scope="module")
def core(lab: ClusterLab) -> official.CoreV1Api:
    """The official client, and a pod `box` in the default namespace with a ConfigMap mounted at /etc/app."""

    async def script() -> None:
        settings = {"metadata": {"name": "box-settings"}, "data": {"colour": "green\n"}}
        await lab.client.create("/api/v1/namespaces/default/configmaps", settings)
        mounts = [{"name": "app", "mountPath": "/etc/app"}]
        main = {
            "name": "main",
            "image": "watched",
            "env": [{"name": "MESH", "value": "linkerd"}],
            "volumeMounts": mounts,
        }
        volumes = [{"name": "app", "configMap": {"name": "box-settings"}}]
        await lab.client.create(PODS, pod("box", main, volumes=volumes))
        await lab.pod("box", ready)

    lab.run(script())
    return official.CoreV1Api(config.new_client_from_config(str(lab.server.kubeconfig)))  # type: ignore[no-untyped-call]  # it has no types


def run(core: official.CoreV1Api, *command: str, stdin: str | None = None, protocol: str = "v5") -> Any:
    """(stdout, stderr, exit code) of a command in pod `box`."""
    socket = stream(
        core.connect_get_namespaced_pod_exec, "box", "default", command=list(command), stdin=stdin is not None,
        stdout=True, stderr=True, tty=False, _preload_content=False,
    )  # fmt: skip
    if stdin is not None:
        socket.write_stdin(stdin)
        socket.close_channel(0)
    socket.run_forever(timeout=10)
    return socket.read_stdout(), socket.read_stderr(), socket.returncode


@pytest.mark.proves("api", "exec", "Python client: standard output, standard error and exit code")
def test_the_python_client_gets_output_errors_and_the_exit_code_of_a_command(core: official.CoreV1Api) -> None:
    assert run(core, "sh", "-c", SCRIPT) == ("to-out\n", "to-err\n", 3)
    assert run(core, "true")[2] == 0


@pytest.mark.proves("api", "exec", "Python client: standard input with its end (v5.channel.k8s.io)")
def test_standard_input_reaches_the_command_and_ends(core: official.CoreV1Api) -> None:
    assert run(core, "cat", stdin="héllo\n" * 1000) == ("héllo\n" * 1000, "", 0)
    assert run(core, "wc", "-c", stdin="x" * 7) == ("7\n", "", 0)


@pytest.mark.proves("api", "exec", "the whole answer as one text, as the Python client's default is")
def test_the_python_client_returns_the_output_as_one_text(core: official.CoreV1Api) -> None:
    command = ["sh", "-c", "echo $MESH; cat /etc/app/colour"]
    text = stream(
        core.connect_get_namespaced_pod_exec, "box", "default", command=command, stdin=False, stdout=True, stderr=True,
        tty=False,
    )  # fmt: skip
    assert text == "linkerd\ngreen\n"


@pytest.mark.proves("api", "exec", "a program that is not in the image: InternalError, not an exit code")
def test_a_program_that_is_not_there_is_an_error_of_the_runtime(core: official.CoreV1Api) -> None:
    socket = stream(
        core.connect_get_namespaced_pod_exec, "box", "default", command=["nosuch"], stdin=False, stdout=True,
        stderr=True, tty=False, _preload_content=False,
    )  # fmt: skip
    socket.run_forever(timeout=10)
    assert '"reason":"InternalError"' in (error := socket.read_channel(3))
    assert "executable file not found in $PATH" in error


@pytest.mark.proves("api", "exec", "a container that does not exist: 400; a pod that does not: 404")
@pytest.mark.parametrize(("name", "container", "status"), [("box", "nope", 400), ("none", "main", 404)])
def test_exec_into_what_is_not_there_is_refused_before_the_upgrade(
    core: official.CoreV1Api, name: str, container: str, status: int
) -> None:
    with pytest.raises(ApiException) as refused:
        stream(
            core.connect_get_namespaced_pod_exec, name, "default", command=["true"], container=container, stdout=True
        )
    assert f"{status}" in str(refused.value)


def test_mounted_configuration_cannot_be_written_by_a_command(core: official.CoreV1Api) -> None:
    out, err, code = run(core, "sh", "-c", "echo x > /etc/app/colour")
    assert (out, code) == ("", 1)
    assert "Read-only file system" in err


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("false && echo no; echo yes", ("yes\n", 0)),
        ("false || echo 'a  b'", ("a  b\n", 0)),
        ("echo one | cat | wc -l", ("1\n", 0)),
        ("echo kept > /tmp-file; cat < /tmp-file; rm /tmp-file; test -e /tmp-file", ("kept\n", 1)),
        ("echo \"${MESH}-$?\" '$MESH'", ("linkerd-0 $MESH\n", 0)),
        ("cat /../../../etc/app/colour", ("green\n", 0)),
        ("nosuch", ("", 127)),
        ("for x in a; do echo $x; done", ("", 2)),
    ],
)
def test_the_shell_does_what_a_shell_does(core: official.CoreV1Api, script: str, expected: tuple[str, int]) -> None:
    out, _err, code = run(core, "sh", "-c", script)
    assert (out, code) == expected


@pytest.fixture
def kubectl(lab: ClusterLab, core: official.CoreV1Api) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*words: str, stdin: str | None = None, websockets: str = "true") -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(lab.server.kubeconfig),
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": websockets,
        }
        return subprocess.run(
            ["kubectl", *words], env=environment, input=stdin, capture_output=True, text=True, timeout=30, check=False
        )

    return call


@needs_kubectl
@pytest.mark.slow
@pytest.mark.proves("api", "exec", "kubectl exec over WebSocket and over SPDY: all three streams and the exit code")
@pytest.mark.parametrize("websockets", ["true", "false"])
def test_kubectl_runs_a_command_over_websocket_and_spdy(kubectl: Any, websockets: str) -> None:
    done = kubectl("exec", "box", "--", "sh", "-c", SCRIPT, websockets=websockets)
    assert (done.stdout, done.returncode) == ("to-out\n", 3)
    assert done.stderr.splitlines() == ["to-err", "command terminated with exit code 3"]
    done = kubectl("exec", "-i", "box", "--", "cat", stdin="x" * 200_000, websockets=websockets)
    assert (len(done.stdout), done.returncode) == (200_000, 0)
    done = kubectl("exec", "box", "--", "nosuch", websockets=websockets)
    assert done.returncode == 1
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr


@needs_kubectl
@pytest.mark.slow
@pytest.mark.proves("api", "exec", "kubectl cp, both ways")
def test_kubectl_copies_a_file_into_a_container_and_out_of_it(kubectl: Any, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("roots\n")
    assert kubectl("exec", "box", "--", "mkdir", "-p", "/data").returncode == 0
    copied = kubectl("cp", str(tmp_path / "there"), "box:/data/there")
    assert copied.returncode == 0, copied.stderr
    assert kubectl("exec", "box", "--", "cat", "/data/there").stdout == "roots\n"
    copied = kubectl("cp", "box:/data/there", str(tmp_path / "back"))
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "back").read_text() == "roots\n"


@needs_kubectl
@pytest.mark.slow
@pytest.mark.proves("api", "attach", "kubectl attach shows what the container writes, until it exits")
@pytest.mark.proves("api", "logs", "kubectl logs -f --previous")
def test_kubectl_attaches_to_a_container_and_reads_the_log_of_the_one_before(lab: ClusterLab, kubectl: Any) -> None:
    async def script() -> None:
        command = ["sh", "-c", "sleep 4; echo goodbye; exit 1"]
        await lab.client.create(PODS, pod("brief", {"name": "main", "image": "busybox", "command": command}))
        await lab.pod("brief", ready)

    lab.run(script())
    attached = kubectl("attach", "brief")
    assert attached.stdout == "goodbye\n"
    assert attached.returncode == 0, attached.stderr
    before = kubectl("logs", "brief", "-f", "--previous")
    assert (before.stdout, before.returncode) == ("goodbye\n", 0)
