"""The kubelet's HTTPS server: logs, exec, attach, port-forward, pods, health, as an API server's proxy expects them.

Paths are those of a real kubelet (pkg/kubelet/server): /containerLogs/{namespace}/{pod}/{container},
/exec and /attach/{namespace}/{pod}[/{uid}]/{container}, /portForward/{namespace}/{pod}[/{uid}], /pods, /healthz. The
serving certificate is self-signed, as a real kubelet's is by default.

Who may call: whoever shows a client certificate signed by the cluster's CA. Which CA that is, the cluster publishes
in ConfigMap kube-system/extension-apiserver-authentication (`client-ca-file`); everybody else gets 401. When the
ConfigMap is not there, the CA cannot be known, and the server accepts any caller: it listens on a loopback address
only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from infra.lab.kubelet import portforward, remotecommand, userland
from infra.lab.kubelet.certificate import self_signed

if TYPE_CHECKING:
    from infra.lab.client import Informer
    from infra.lab.kubelet.kubelet import Kubelet

JSON = dict[str, Any]
CHUNK = 65536

log = logging.getLogger(__name__)


@dataclass
class Call:
    """One request and the connection it came on."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection
    body: bytes = b""

    def one(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return self.query.get(name, [None])[0]

    def values(self, header: str) -> list[str]:
        """The elements of a header that is a list."""
        return [word.strip() for word in self.headers.get(header, "").split(",") if word.strip()]

    def flag(self, name: str) -> bool:
        """A boolean query parameter as Go parses it."""
        return (self.one(name) or "").lower() in ("1", "t", "true")

    def number(self, name: str) -> int | None:
        """A non-negative integer parameter. Raises RefusedError (400)."""
        text = self.one(name)
        if text is None or text == "":
            return None
        if not text.isdigit():
            raise RefusedError(400, f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text)


class RefusedError(Exception):
    """An answer that is not 200: status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(eq=False)
class KubeletServer:
    """Serves one kubelet."""

    kubelet: Kubelet
    configmaps: Informer
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, host: str, port: int) -> None:
        """Listen with TLS. Raises OSError when the port is taken."""
        self._server = await asyncio.start_server(self._accept, host, port, ssl=self._context(host), limit=1 << 20)

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _context(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with self_signed(self.kubelet.name, host) as file:
            context.load_cert_chain(file)
        published = self.configmaps.get("kube-system", "extension-apiserver-authentication")
        roots = ((published or {}).get("data") or {}).get("client-ca-file")
        if roots:
            context.load_verify_locations(cadata=roots)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    @staticmethod
    def _admit(writer: asyncio.StreamWriter) -> None:
        context: ssl.SSLContext = writer.get_extra_info("sslcontext") or writer.get_extra_info("ssl_object").context
        if context.verify_mode != ssl.CERT_NONE and not writer.get_extra_info("peercert"):
            raise RefusedError(401, "Unauthorized")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this callback in a task of its own
        self._connections.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, h11.ProtocolError, asyncio.IncompleteReadError, asyncio.CancelledError) as error:
            log.debug("kubelet %s: connection ended: %r", self.kubelet.name, error)
        except Exception:
            log.exception("kubelet %s: a request failed", self.kubelet.name)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError, ssl.SSLError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it; False when the connection is over."""
        http = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                http.receive_data(await reader.read(CHUNK))
            elif isinstance(event, h11.Request):
                request = event
                if b"upgrade" in {name for name, _ in event.headers}:
                    break
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage | h11.PAUSED):
                break
            else:
                return False
        if request is None:
            return False
        url = urlsplit(request.target.decode())
        headers: dict[str, str] = {}
        for raw, value in request.headers:  # repeated lines are one list (RFC 9110 section 5.3)
            name, text = raw.decode(), value.decode("latin-1")
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        query = parse_qs(url.query, keep_blank_values=True)
        call = Call(request.method.decode(), unquote(url.path), query, headers, reader, writer, http, body)
        try:
            self._admit(writer)
            return await self._route(call)
        except RefusedError as refused:
            await self._answer(call, refused.status, refused.text.encode())
            return False

    async def _route(self, call: Call) -> bool:
        parts = call.path.strip("/").split("/")
        match parts:
            case ["healthz"]:
                await self._answer(call, 200, b"ok")
                return False
            case ["pods"]:
                items = [worker.pod_with_addresses() for worker in self.kubelet.workers.values()]
                whole = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
                await self._answer(call, 200, json.dumps(whole).encode(), "application/json")
                return False
            case ["containerLogs", namespace, pod, container]:
                await self._logs(call, namespace, pod, container)
                return False
            case ["portForward", namespace, pod, *uid] if len(uid) <= 1:
                worker = self.kubelet.worker(namespace, pod, uid[0] if uid else None)
                if worker is None:
                    raise RefusedError(404, "pod does not exist")
                await portforward.serve(call, worker.ip)
                return False
            case ["exec" | "attach" as what, namespace, pod, *uid, container] if len(uid) <= 1:
                await self._remote(call, what, namespace, pod, uid, container)
                return False
        raise RefusedError(404, "404 page not found")

    async def _remote(self, call: Call, what: str, namespace: str, pod: str, uid: list[str], name: str) -> None:
        worker = self.kubelet.worker(namespace, pod, uid[0] if uid else None)
        container = worker.containers.get(name) if worker is not None else None
        if container is None:
            raise RefusedError(404, "pod does not exist" if worker is None else f'container "{name}" not found')
        if what == "attach":
            await remotecommand.attach(call, container)
            return
        image = str(container.state.spec.get("image", ""))
        registered = self.kubelet.programs.lookup(image, name, list(container.state.spec.get("args") or []))
        if registered is None and not userland.installed(image):
            raise RefusedError(404, "404: Not Found")
        await remotecommand.execute(call, container)

    async def _logs(self, call: Call, namespace: str, pod: str, name: str) -> None:
        worker = self.kubelet.worker(namespace, pod)
        if worker is None:
            raise RefusedError(404, f'pod "{pod}" not found')
        container = worker.containers.get(name)
        if container is None:
            raise RefusedError(404, f'container "{name}" not found in pod "{pod}"')
        previous = call.flag("previous")
        chosen = container.previous_log if previous else container.log
        if chosen is None and previous:
            raise RefusedError(400, f'previous terminated container "{name}" in pod "{pod}" not found')
        if chosen is None:
            reason = container.state.state.get("waiting", {}).get("reason", "ContainerCreating")
            raise RefusedError(400, f'container "{name}" in pod "{pod}" is waiting to start: {reason}')
        tail, since = call.number("tailLines"), self._since(call)
        limit, stamps = call.number("limitBytes"), call.flag("timestamps")
        if not call.flag("follow"):
            text = "".join(line.render(stamps) for line in chosen.lines(tail=tail, since=since)).encode()
            await self._answer(call, 200, text if limit is None else text[:limit])
            return
        head = [("content-type", "text/plain"), ("transfer-encoding", "chunked")]
        call.writer.write(call.http.send(h11.Response(status_code=200, headers=head)) or b"")
        await call.writer.drain()
        gone = asyncio.create_task(call.reader.read(1))
        stream = asyncio.create_task(self._stream(call, chosen.follow(tail=tail, since=since), stamps))
        await asyncio.wait([gone, stream], return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, stream):
            task.cancel()
        await asyncio.gather(gone, stream, return_exceptions=True)

    async def _stream(self, call: Call, lines: Any, stamps: bool) -> None:
        async for line in lines:
            call.writer.write(call.http.send(h11.Data(data=line.render(stamps).encode())) or b"")
            await call.writer.drain()
        call.writer.write(call.http.send(h11.EndOfMessage()) or b"")
        await call.writer.drain()

    @staticmethod
    def _since(call: Call) -> datetime | None:
        seconds = call.number("sinceSeconds")
        if seconds is not None:
            return datetime.now(UTC) - timedelta(seconds=seconds)
        text = call.one("sinceTime")
        return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None

    @staticmethod
    async def _answer(call: Call, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        headers = [("content-type", kind), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            call.writer.write(call.http.send(event) or b"")
        await call.writer.drain()
