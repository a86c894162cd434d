"""What requests may cost the server, in CPU time of its thread (not wall time: the machine may be busy)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.apiserver import ApiServer
from infra.lab.apiserver.objects import canonical
from infra.lab.apiserver.users import MASTERS, User

if TYPE_CHECKING:
    from pathlib import Path

PODS = 2000


class _Administrator:
    """Authentication is measured elsewhere; here everybody is the administrator."""

    @staticmethod
    def authenticate(_scope: Any, _asked: Any = None) -> User:
        return User("admin", groups=(MASTERS,))


async def call(server: ApiServer, method: str, path: str, body: Any = None) -> Any:
    """A request straight to the application, without TLS and HTTP parsing."""
    path, _, query = path.partition("?")
    raw = json.dumps(body).encode() if body is not None else b""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json"), (b"user-agent", b"test/1")],
        "state": {},
    }
    await server.app(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent)


def pod(name: str) -> dict[str, Any]:
    containers = [{"name": name, "image": f"registry.example/{name}:1"} for name in ("main", "proxy")]
    return {"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": containers}}


@pytest.fixture
def server(tmp_path: Path) -> ApiServer:
    made = ApiServer(tmp_path)
    made.app.authenticator = _Administrator()  # type: ignore[assignment]  # only `authenticate` is used
    return made


def test_two_thousand_pods_are_listed_in_four_pages_within_a_tenth_of_a_second(server: ApiServer) -> None:
    kind = server.api.registry.by_resource("pods")
    assert kind
    for number in range(PODS):
        body = pod(f"p{number:04}")
        body["metadata"] |= {"namespace": "default", "uid": server.api.new_uid()}
        server.api.store.create("pods", ("default", f"p{number:04}"), canonical(body, kind))

    async def pages() -> list[bytes]:
        out, token = [], ""
        while True:
            out.append(await call(server, "GET", f"/api/v1/pods?limit=500&continue={token}"))
            token = json.loads(out[-1][:300].partition(b',"items"')[0] + b"}")["metadata"].get("continue", "")
            if not token:
                return out

    asyncio.run(pages())  # the first time each object is serialised, once and for all
    start = time.thread_time()
    answers = asyncio.run(pages())
    assert time.thread_time() - start < 0.1
    assert [len(json.loads(answer)["items"]) for answer in answers] == [500] * 4


def test_a_write_costs_about_a_millisecond(server: ApiServer) -> None:
    async def writes(count: int) -> None:
        for number in range(count):
            body = {"metadata": {"name": f"c{number}-{count}"}, "data": {"a": "1"}}
            await call(server, "POST", "/api/v1/namespaces/default/configmaps", body)
            name = f"/api/v1/namespaces/default/configmaps/c{number}-{count}"
            await call(server, "PUT", name, {**body, "data": {"a": "2"}})

    asyncio.run(writes(20))
    start = time.thread_time()
    asyncio.run(writes(200))
    # 0.3 ms each when measured on an idle core; twice the target leaves room for slower machines
    assert (time.thread_time() - start) / 400 < 0.002
