"""What a run writes for whoever is to answer it survives a server that dies between writing and answering."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import BaseModel

from flows.suspending import offer

if TYPE_CHECKING:
    from prefect.input.run_input import Keyset


class Form(BaseModel):
    """What is to be filled in."""

    decision: str


KEYS: Keyset = {"response": "paused-1-response", "schema": "paused-1-schema", "description": "paused-1-description"}


class Server:
    """The inputs of runs, as Prefect's REST API keeps them: each key once.

    Attributes:
        unseen: Keys that it holds and says it does not, once: they are written between the question and the request.
        refusing: The status with which it refuses to write; 0 for none.
    """

    def __init__(self, refusing: int = 0) -> None:
        self.kept: dict[str, str] = {}
        self.unseen: set[str] = set()
        self.refusing = refusing

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if "/input" not in request.url.path:
            return httpx.Response(404)
        if request.method == "GET":
            key = request.url.path.rpartition("/")[2]
            if key in self.unseen:
                self.unseen.discard(key)
                return httpx.Response(404, json={"detail": "Flow run input not found"})
            return httpx.Response(200, text=self.kept[key]) if key in self.kept else httpx.Response(404, json={})
        body = json.loads(request.content)
        if self.refusing:
            return httpx.Response(self.refusing, json={"detail": "no"})
        if body["key"] in self.kept:
            return httpx.Response(409, json={"detail": "A flow run input with this key already exists."})
        self.kept[body["key"]] = body["value"]
        return httpx.Response(201)

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient("http://prefect.test/api", httpx_settings={"transport": httpx.MockTransport(self)})


def test_a_form_is_offered_once_and_again_where_only_the_answer_was_lost() -> None:
    server, run = Server(), uuid4()
    offer(server.client(), run, KEYS, Form, "what is asked")
    written = dict(server.kept)
    assert json.loads(written[KEYS["description"]]) == "what is asked"
    assert json.loads(written[KEYS["schema"]]) == Form.model_json_schema()
    server.unseen = set(written)
    offer(server.client(), run, KEYS, Form, "what is asked")
    assert server.unseen == set()  # each was asked for, and sent again
    assert server.kept == written


def test_a_server_that_refuses_a_form_is_not_taken_for_one_that_has_it() -> None:
    with pytest.raises(PrefectHTTPStatusError, match="403"):
        offer(Server(refusing=403).client(), uuid4(), KEYS, Form, "what is asked")
