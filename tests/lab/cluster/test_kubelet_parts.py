"""The kubelet's parts by themselves: volumes, environment, status, logs, restarts, frames."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.kubelet import atomic, programs, spdy, status
from infra.lab.kubelet.addresses import AddressPool
from infra.lab.kubelet.container import Backoff, Knobs
from infra.lab.kubelet.environment import ConfigError, environment, expand, field_value, resource_value
from infra.lab.kubelet.logs import ContainerLog
from infra.lab.kubelet.runtime import Container, Programs
from infra.lab.kubelet.status import ContainerState
from infra.lab.kubelet.tunnel import BytesTunnel, WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = dict[str, Any]


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if not file.name.startswith("..")}


# Volumes -----------------------------------------------------------------------------------------------------------


def test_all_files_of_a_volume_change_together_through_one_link(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    assert atomic.write(volume, {"a": atomic.Entry(b"1"), "b": atomic.Entry(b"1", 0o400)})
    old = (volume / "..data").readlink()
    assert atomic.write(volume, {"a": atomic.Entry(b"2"), "c": atomic.Entry(b"2")})
    assert files(volume) == {"a": b"2", "c": b"2"}
    assert (volume / "a").readlink() == Path("..data/a")
    assert not (volume / old).exists()


def test_an_unchanged_volume_is_not_touched(tmp_path: Path) -> None:
    payload = {"a": atomic.Entry(b"1"), "deep/er": atomic.Entry(b"2")}
    atomic.write(tmp_path, payload)
    before = (tmp_path / "..data").readlink()
    assert not atomic.write(tmp_path, payload)
    assert (tmp_path / "..data").readlink() == before
    assert (tmp_path / "deep" / "er").read_bytes() == b"2"


@pytest.mark.parametrize("path", ["../out", "/abs", "a/../../b", "..data"])
def test_a_volume_cannot_write_outside_itself(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="invalid path"):
        atomic.write(tmp_path, {path: atomic.Entry(b"")})


# Environment -------------------------------------------------------------------------------------------------------


def test_references_in_values_are_expanded_as_kubernetes_does() -> None:
    env = {"A": "1", "B.c": "2"}
    assert expand("$(A)-$(B.c)-$(NO)-$$(A)-$A-$", env) == "1-2-$(NO)-$(A)-$A-$"


def test_later_sources_of_the_environment_win_and_prefixes_apply() -> None:
    maps = {
        "one": {"kind": "ConfigMap", "data": {"X": "map", "Y": "map"}},
        "two": {"kind": "Secret", "data": {"X": "c2VjcmV0"}},
    }
    container = {
        "envFrom": [{"configMapRef": {"name": "one"}}, {"prefix": "P_", "secretRef": {"name": "two"}},
                    {"configMapRef": {"name": "none", "optional": True}}],
        "env": [{"name": "Y", "value": "plain"}, {"name": "Z", "value": "$(Y)/$(P_X)"}],
    }  # fmt: skip
    env = environment({"metadata": {}, "spec": {}}, container, lambda _, name: maps.get(name))
    assert env == {"X": "map", "Y": "plain", "P_X": "secret", "Z": "plain/secret"}


def test_a_missing_key_is_named_unless_it_is_optional() -> None:
    def container(optional: bool) -> JSON:
        reference = {"name": "m", "key": "k", "optional": optional}
        return {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": reference}}]}

    pod = {"metadata": {"namespace": "n"}, "spec": {}}
    there = {"kind": "ConfigMap", "data": {}}
    assert environment(pod, container(True), lambda *_: there) == {}
    with pytest.raises(ConfigError, match="couldn't find key k in ConfigMap n/m"):
        environment(pod, container(False), lambda *_: there)


def test_the_downward_api_offers_labels_and_resources() -> None:
    pod = {"metadata": {"name": "p", "labels": {"b": 'x"y', "a": "1"}}, "spec": {"containers": []}}
    assert field_value(pod, "metadata.labels") == 'a="1"\nb="x\\"y"'
    assert field_value(pod, "metadata.labels['a']") == "1"
    container = {"resources": {"limits": {"memory": "1536Mi", "cpu": "1500m"}}}
    assert resource_value(pod, {"resource": "limits.memory", "divisor": "1Gi"}, container) == "2"
    assert resource_value(pod, {"resource": "requests.cpu"}, container) == "2"


# Status ------------------------------------------------------------------------------------------------------------


def state(kind: str, code: int = 0, *, name: str = "c", last: bool = False, sidecar: bool = False) -> ContainerState:
    spec = {"name": name, **({"restartPolicy": "Always"} if sidecar else {})}
    body = {"terminated": {"exitCode": code}, "running": {}, "waiting": {}}[kind]
    made = ContainerState(spec, {kind: body}, {"terminated": {"exitCode": 1}} if last else {})
    made.ready = made.started = kind == "running"
    return made


@pytest.mark.parametrize(
    ("policy", "init", "main", "expected"),
    [
        ("Always", [], [state("waiting")], "Pending"),
        ("Always", [state("terminated", 1)], [state("waiting")], "Pending"),
        ("Never", [state("terminated", 1)], [state("waiting")], "Failed"),
        ("Always", [], [state("running"), state("waiting")], "Running"),
        ("Always", [], [state("waiting", last=True)], "Running"),
        ("Always", [], [state("terminated")], "Running"),
        ("Never", [], [state("terminated"), state("terminated", 3)], "Failed"),
        ("OnFailure", [state("running", sidecar=True)], [state("terminated")], "Succeeded"),
        ("OnFailure", [], [state("terminated", 3)], "Running"),
    ],
)
def test_the_phase_follows_from_the_containers(
    policy: str, init: list[ContainerState], main: list[ContainerState], expected: str
) -> None:
    assert status.phase(policy, init, main) == expected


def test_a_sidecar_that_is_not_ready_makes_the_pod_unready() -> None:
    sidecar = state("waiting", name="proxy", sidecar=True)
    made = status.conditions({"spec": {}}, "Running", [sidecar], [state("running")], True)
    ready = next(c for c in made if c["type"] == "Ready")
    assert ready["message"] == "containers with unready status: [proxy]"


def test_a_transition_time_changes_only_with_the_status() -> None:
    old = [{"type": "Ready", "status": "True", "lastTransitionTime": "then"}]
    same = status.with_times([{"type": "Ready", "status": "True"}], old, "now", 2)
    other = status.with_times([{"type": "Ready", "status": "False"}], old, "now", 2)
    assert same[0]["lastTransitionTime"] == "then"
    assert other[0]["lastTransitionTime"] == "now"


def test_restarts_are_immediate_at_first_then_pause_longer_and_longer() -> None:
    backoff = Backoff(first=10, limit=300)
    assert [backoff.seconds(n) for n in range(1, 9)] == [0, 10, 20, 40, 80, 160, 300, 300]


def test_annotations_that_are_no_numbers_are_ignored() -> None:
    notes = {"lab.capstan.dev/start-seconds": "soon", "lab.capstan.dev/crash": "true"}
    knobs = Knobs.of({"metadata": {"annotations": notes}}, default_start=0.5)
    assert (knobs.start_seconds, knobs.crash) == (0.5, 0.0)


# Logs and programs -------------------------------------------------------------------------------------------------


def test_a_log_keeps_the_newest_lines_and_a_follower_sees_each_once() -> None:
    async def script() -> list[str]:
        log = ContainerLog(keep=3)
        for number in range(5):
            log.write(f"line {number}")
        assert [line.text for line in log.lines()] == ["line 2", "line 3", "line 4"]

        async def read() -> list[str]:
            return [line.text async for line in log.follow(tail=1)]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        log.write("a\nb")
        await asyncio.sleep(0)
        log.write("c")
        log.close()
        return await reader

    assert asyncio.run(script()) == ["line 4", "a", "b", "c"]


def test_the_longest_prefix_wins_and_an_argument_narrows_it() -> None:
    async def one(_: Container) -> int:
        return 1

    async def two(_: Container) -> int:
        return 2

    table = Programs()
    table.register("cr.example/", one)
    table.register("cr.example/controller", one)
    table.register("cr.example/controller", two, first_arg="identity")
    assert table.lookup("cr.example/controller:v1", args=["identity", "-x"]) is two
    assert table.lookup("cr.example/controller:v1", args=["destination"]) is one
    assert table.lookup("elsewhere/controller") is None


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        ("echo a; echo 'b; c' && exit 3", 3, ["a", "b; c"]),
        ("false && echo no || echo yes", 0, ["yes"]),
        ("true\nfalse", 1, []),
        ("rm -rf /", 127, ["sh: rm: not found (the lab's containers run no host processes)"]),
    ],
)
def test_small_shell_scripts_are_interpreted_and_nothing_runs_on_the_host(
    tmp_path: Path, script: str, code: int, output: list[str]
) -> None:
    async def run() -> tuple[int, list[str]]:
        container = Container({"metadata": {}}, "c", "busybox", tmp_path, command=["/bin/sh", "-c", script])
        return await programs.generic(container), [line.text for line in container.logs.lines()]

    assert asyncio.run(run()) == (code, output)


def test_two_labs_never_share_an_address() -> None:
    one, two = AddressPool(), AddressPool()
    try:
        assert one.take().split(".")[1] != two.take().split(".")[1]
        first = one.take()
        one.free(first)
        assert one.take() != first
    finally:
        one.close()
        two.close()


# Frames ------------------------------------------------------------------------------------------------------------


class Pipe:
    """A tunnel whose input is given and whose output is kept."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)
        self.sent = b""

    async def read(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def close(self) -> None:
        self.parts.clear()


def test_the_spdy_dictionary_is_the_one_of_the_specification() -> None:
    # zlib streams name their dictionary by its checksum; spdy/3 peers all announce this one.
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2


def test_a_spdy_stream_carries_headers_and_bytes_both_ways_however_the_frames_are_cut() -> None:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    headers = {"streamtype": "data", "port": "8080"}
    raw = struct.pack("!I", len(headers)) + b"".join(
        struct.pack("!I", len(w)) + w.encode() for pair in headers.items() for w in pair
    )
    block = deflate.compress(raw) + deflate.flush(zlib.Z_SYNC_FLUSH)
    body = struct.pack("!IIH", 1, 0, 0) + block
    frames = struct.pack("!HHI", 0x8003, spdy.SYN_STREAM, len(body)) + body
    frames += struct.pack("!II", 1, 5) + b"hello" + struct.pack("!II", 1, spdy.FIN << 24)
    pipe = Pipe(*(frames[i : i + 7] for i in range(0, len(frames), 7)))

    async def script() -> tuple[dict[str, str], bytes]:
        session = spdy.Session(pipe)
        streams: AsyncIterator[spdy.Stream] = session.accept()
        stream = await anext(streams)
        await session.reply(stream)
        await stream.write(b"world")
        await stream.end()
        async for _ in streams:
            pass
        received = b""
        while part := await stream.read():
            received += part
        return stream.headers, received

    found, received = asyncio.run(script())
    assert found == headers
    assert received == b"hello"
    assert struct.pack("!II", 1, 5) + b"world" in pipe.sent
    assert pipe.sent.endswith(struct.pack("!II", 1, spdy.FIN << 24))


@pytest.mark.parametrize("size", [5, 125, 126, 65535, 65536, 200000])
def test_websocket_messages_of_every_length_class_arrive_whole(size: int) -> None:
    payload = os.urandom(size)
    mask = b"\x01\x02\x03\x04"
    masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
    length = bytes([0x80 | size]) if size < 126 else (
        b"\xfe" + struct.pack("!H", size) if size < 65536 else b"\xff" + struct.pack("!Q", size)
    )  # fmt: skip
    ping = b"\x89\x80" + mask
    frame = ping + b"\x82" + length + mask + masked

    class Wire(BytesTunnel):
        def __init__(self) -> None:
            self.pipe = Pipe(frame[:9], frame[9:])
            self.read = self.pipe.read  # type: ignore[method-assign]  # no sockets in this test
            self.write = self.pipe.write  # type: ignore[method-assign]
            self.close = self.pipe.close  # type: ignore[method-assign]

    async def script() -> bytes | None:
        wire = Wire()
        socket = WebSocket(wire)
        received = await socket.receive()
        assert wire.pipe.sent.startswith(b"\x8a\x00")  # the ping was answered
        return received

    assert asyncio.run(script()) == payload
