"""The lab's HTTP and Kubernetes clients, against small servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab import kubeconfig
from infra.lab.client import ApiError, Informer, KubeClient
from infra.lab.http1 import NoAnswerError, Pool
from infra.lab.kubeconfig import Endpoint, KubeconfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

JSON = dict[str, Any]


class Server:
    """Answers the n-th request (over all connections) with the n-th script entry; None hangs up without an answer."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests.append(head.split("\r\n")[0])
                length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("content-length")), 0)
                self.bodies.append(await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def plain(body: JSON, status: str = "200 OK", more: str = "") -> bytes:
    data = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{more}\r\n".encode() + data


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def run(script: Callable[[], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        async with asyncio.timeout(10):
            return await script()

    return asyncio.run(whole())


def test_requests_share_a_connection() -> None:
    async def script() -> None:
        async with Server(plain({"n": 1}), chunked(b'{"n"', b":2}")) as server:
            pool = Pool(server.url)
            bodies = [(await pool.request("GET", "/", {})).body for _ in range(2)]
            assert [json.loads(body) for body in bodies] == [{"n": 1}, {"n": 2}]
            assert server.connections == 1
            await pool.close()

    run(script)


def test_a_read_on_a_connection_the_server_hung_up_is_repeated_but_a_write_is_not() -> None:
    async def script() -> None:
        async with Server(plain({}), None, plain({"again": True})) as server:
            pool = Pool(server.url)
            await pool.request("GET", "/warm", {})
            answer = await pool.request("GET", "/read", {})
            assert json.loads(answer.body) == {"again": True}
            await pool.close()
        async with Server(plain({}), None, plain({})) as server:
            pool = Pool(server.url)
            await pool.request("GET", "/warm", {})
            with pytest.raises(NoAnswerError):
                await pool.request("POST", "/write", {}, b"{}")
            assert len(server.requests) == 2
            await pool.close()

    run(script)


def test_a_request_that_was_cancelled_halfway_does_not_leave_its_answer_to_the_next_one() -> None:
    async def script() -> None:
        async with Server(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla", plain({"mine": True})) as server:
            pool = Pool(server.url)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await pool.request("GET", "/slow", {})
            assert json.loads((await pool.request("GET", "/", {})).body) == {"mine": True}
            assert server.connections == 2
            await pool.close()

    run(script)


def test_an_answer_cut_off_in_the_middle_is_no_answer() -> None:
    async def script() -> None:
        async with Server(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\nConnection: close\r\n\r\nla", None) as server:
            pool = Pool(server.url)
            with pytest.raises(NoAnswerError):
                await pool.request("GET", "/", {}, seconds=0.2)
            await pool.close()

    run(script)


def test_the_client_comes_back_when_the_server_says_so() -> None:
    async def script() -> None:
        busy = plain({"reason": "TooManyRequests"}, "429 Too Many Requests", "Retry-After: 0\r\n")
        async with Server(busy, busy, plain({"ok": 1})) as server, KubeClient(Endpoint(server.url)) as client:
            assert await client.create("/api/v1/things", {"a": 1}) == {"ok": 1}
            assert server.bodies == [b'{"a":1}'] * 3

    run(script)


def test_a_refusal_carries_the_status_the_reason_and_the_message() -> None:
    async def script() -> ApiError:
        body = {"kind": "Status", "reason": "Conflict", "message": "changed meanwhile", "code": 409}
        async with Server(plain(body, "409 Conflict")) as server, KubeClient(Endpoint(server.url)) as client:
            with pytest.raises(ApiError) as caught:
                await client.replace("/api/v1/namespaces/a/configmaps/b", {})
            return caught.value

    error = run(script)
    assert (error.status, error.reason, error.message) == (409, "Conflict", "changed meanwhile")


def test_pages_of_a_list_are_joined_and_names_with_colons_are_not_mangled() -> None:
    async def script() -> None:
        first = plain({"metadata": {"resourceVersion": "7", "continue": "a b"}, "items": [1, 2]})
        second = plain({"metadata": {"resourceVersion": "7"}, "items": [3]})
        async with Server(first, second) as server, KubeClient(Endpoint(server.url)) as client:
            whole = await client.list("/api/v1/system:things", limit=2, labelSelector="a=b")
            assert whole["items"] == [1, 2, 3]
            assert "continue" not in whole["metadata"]
            assert server.requests == [
                "GET /api/v1/system:things?limit=2&labelSelector=a%3Db HTTP/1.1",
                "GET /api/v1/system:things?limit=2&labelSelector=a%3Db&continue=a+b HTTP/1.1",
            ]

    run(script)


def event(kind: str, name: str, version: int) -> bytes:
    metadata = {"name": name, "namespace": "n", "uid": name, "resourceVersion": str(version)}
    return json.dumps({"type": kind, "object": {"metadata": metadata}}).encode() + b"\n"


def listing(version: int, **names: int) -> bytes:
    items = [{"metadata": {"name": n, "namespace": "n", "uid": n, "resourceVersion": str(v)}} for n, v in names.items()]
    return plain({"kind": "ThingList", "metadata": {"resourceVersion": str(version)}, "items": items})


def test_an_informer_whose_version_is_too_old_lists_again_and_tells_only_the_differences() -> None:
    too_old = json.dumps({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}).encode()

    async def script() -> None:
        answers = (
            listing(5, a=1, b=2, c=3),
            chunked(event("MODIFIED", "a", 6)[:20], event("MODIFIED", "a", 6)[20:], too_old + b"\n"),
            listing(9, a=6, c=8, d=9),
            chunked(event("DELETED", "d", 10)),
        )
        async with Server(*answers) as server, KubeClient(Endpoint(server.url)) as client:
            informer = Informer(client, "/things")
            seen: list[tuple[str, str]] = []
            informer.on_change(lambda kind, _, new: seen.append((kind, new["metadata"]["name"])))
            await informer.wait_for(lambda _: ("DELETED", "d") in seen)
            await informer.stop()
        assert seen == [
            *(("ADDED", name) for name in "abc"),
            ("MODIFIED", "a"),
            ("DELETED", "b"),
            ("MODIFIED", "c"),
            ("ADDED", "d"),
            ("DELETED", "d"),
        ]

    run(script)


def test_an_answer_observed_late_does_not_bring_a_deleted_object_back() -> None:
    async def script() -> None:
        late = {"metadata": {"name": "a", "namespace": "n", "uid": "a", "resourceVersion": "6"}}
        stream = chunked(event("ADDED", "a", 6), event("DELETED", "a", 7))
        async with Server(listing(5), stream) as server, KubeClient(Endpoint(server.url)) as client:
            informer = Informer(client, "/things")
            gone: list[str] = []
            informer.on_change(lambda kind, _, __: gone.append(kind))
            await informer.wait_for(lambda _: "DELETED" in gone)
            informer.observe(late)
            assert informer.objects == {}
            informer.observe({"metadata": {**late["metadata"], "resourceVersion": "8"}})
            assert ("n", "a") in informer.objects
            await informer.stop()

    run(script)


def test_an_informer_whose_watches_end_at_once_does_not_hammer_the_server() -> None:
    async def script() -> int:
        ends = [chunked(event("MODIFIED", "a", 6 + n)) for n in range(50)]
        async with Server(listing(5, a=1), *ends) as server, KubeClient(Endpoint(server.url)) as client:
            informer = await Informer(client, "/things").synced()
            await asyncio.sleep(0.6)
            await informer.stop()
            return len(server.requests)

    assert 2 <= run(script) <= 6


def test_a_kubeconfig_is_read_with_embedded_data_and_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("KEY")
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://x:1/", "certificate-authority-data": _b64("CA")}}],
        "users": [{"name": "u", "user": {"client-certificate-data": _b64("CERT"), "client-key": "key.pem"}}],
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    endpoint = kubeconfig.load(path)
    assert endpoint == Endpoint("https://x:1", ca_pem="CA", client_cert_pem="CERT", client_key_pem="KEY")


def test_a_kubeconfig_that_needs_a_plugin_is_refused_by_name(tmp_path: Path) -> None:
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://x"}}],
        "users": [{"name": "u", "user": {"exec": {"command": "cloud-login"}}}],
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    with pytest.raises(KubeconfigError, match="credential plugin 'exec'"):
        kubeconfig.load(path)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
