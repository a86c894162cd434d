"""A chat system's webhook, for notifications to be sent to."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBE = "a probe"


class Receiver:
    """Keeps what it is sent; runs of the name `PROBE` apart from the others."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.types: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.types.add(self.headers["content-type"])
                told = json.loads(body)
                (receiver.probes if told["run"] == PROBE else receiver.received).append(told)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hooks/a-secret-path"

    def await_one(self, event: str, seconds: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            found = [body for body in list(self.received) if body["event"] == event]
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"{event} did not arrive; did: {self.received}"
            time.sleep(0.1)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
