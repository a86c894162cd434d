"""Faults on demand: what tests ask the server to do wrong, and counts of what clients did.

``POST /lab/faults`` adds a rule (JSON), ``GET`` lists, ``DELETE`` clears; ``GET /lab/stats`` counts requests by user
agent and method, and the rights that each user who is no administrator has asked for; ``/lab/calls`` shows the server's
own calls (calls.py). Only members of system:masters get in. A rule:

    {"method": "PATCH", "path": "/deployments/web$", "userAgent": "capstan", "nth": 2, "times": 1,
     "action": {"status": 503, "retryAfter": 1} | {"fairness": 1} | {"delay": 0.5} | {"drop": "before"|"after"} |
               {"kill": PID, "when": "before"|"after"} | {"expire": "secrets"} | {"stall": true}}

`path` and `userAgent` are regular expressions searched for; `nth` counts matching requests from 1 (default 1), `times`
is how many are hit from there on (default 1, 0: for ever). ``fairness`` refuses as API priority and fairness does, with
429, so many seconds of Retry-After and the headers that name flow schema and priority level (fairness.py). ``after``
means after the commit. ``expire`` forgets the watch history (of one storage resource or of all) before the request;
``stall`` opens a watch and never sends anything on it.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import re
import signal
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import fairness, status
from .calls import Calls
from .request import Response
from .users import MASTERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .authz import Asked
    from .request import Request
    from .store import Store


class ConnectionDroppedError(Exception):
    """A rule wants this connection closed without an answer."""


REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass
class Rule:
    """One fault; `seen` counts the requests it matched."""

    action: dict[str, Any]
    method: str = ""
    path: str = ""
    user_agent: str = ""
    nth: int = 1
    times: int = 1
    seen: int = 0

    @classmethod
    def read(cls, body: dict[str, Any]) -> Rule:
        """Raises 400 for a rule nobody could mean."""
        action = body.get("action")
        if not isinstance(action, dict) or not action:
            raise status.bad_request("a fault rule needs an action")
        unknown = set(body) - {"action", "method", "path", "userAgent", "nth", "times"}
        if unknown:
            raise status.bad_request(f"unknown fields in a fault rule: {', '.join(sorted(unknown))}")
        known = {"status", "retryAfter", "message", "delay", "drop", "kill", "when", "expire", "stall", "fairness"}
        if set(action) - known:
            raise status.bad_request(f"unknown action: {', '.join(sorted(set(action) - known))}")
        if "fairness" in action and not (isinstance(action["fairness"], int) and action["fairness"] > 0):
            raise status.bad_request("fairness is the seconds of Retry-After: a number above 0")
        try:
            re.compile(body.get("path", ""))
            re.compile(body.get("userAgent", ""))
        except re.error as error:
            raise status.bad_request(f"bad regular expression in a fault rule: {error}") from None
        return cls(
            action,
            body.get("method", "").upper(),
            body.get("path", ""),
            body.get("userAgent", ""),
            int(body.get("nth", 1)),
            int(body.get("times", 1)),
        )

    def hits(self, request: Request) -> bool:
        """Count a matching request and say whether this one is meant."""
        if self.method and self.method != request.method:
            return False
        target = request.path + ("?" + request.query.raw.decode("latin-1") if request.query.raw else "")
        if self.path and not re.search(self.path, target):
            return False
        if self.user_agent and not re.search(self.user_agent, request.headers.get("user-agent", "")):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times == 0 or self.seen < self.nth + self.times)

    def body(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "path": self.path,
            "userAgent": self.user_agent,
            "nth": self.nth,
            "times": self.times,
            "seen": self.seen,
            "action": self.action,
        }


@dataclass
class Faults:
    """All rules of a server, and its statistics."""

    rules: list[Rule] = field(default_factory=list)
    requests: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    asked: collections.Counter[Asked] = field(default_factory=collections.Counter)  # shared with the authorizer
    store: Store | None = None
    calls: Calls = field(default_factory=Calls)  # shared with the webhooks

    def add(self, **rule: Any) -> Rule:
        """Add a rule from within the process; the arguments are the keys of the JSON form."""
        found = Rule.read(rule)
        self.rules.append(found)
        return found

    async def before(self, request: Request) -> None:
        """Count the request and do what rules want done before it is served."""
        self.requests[(request.headers.get("user-agent", ""), request.method)] += 1
        hit = [rule for rule in self.rules if rule.hits(request)]
        request.scope["state"]["faults"] = hit
        for rule in hit:
            await self._before(request, rule.action)

    async def _before(self, request: Request, action: dict[str, Any]) -> None:
        if "delay" in action:
            await asyncio.sleep(float(action["delay"]))
        if "expire" in action and self.store is not None:
            resource = action["expire"]
            self.store.forget_all("" if resource is True else resource)
        if "kill" in action and action.get("when", "before") == "before":
            os.kill(int(action["kill"]), signal.SIGKILL)
        if action.get("drop") == "before":
            raise ConnectionDroppedError
        if "fairness" in action:
            raise fairness.refusal(request.user, int(action["fairness"]))
        if "status" in action:
            raise self._error(action)

    @staticmethod
    def _error(action: dict[str, Any]) -> status.ApiStatusError:
        code = int(action["status"])
        error = status.ApiStatusError(code, action.get("message", "a fault on demand"), REASONS.get(code, ""), {})
        if "retryAfter" in action:
            error.headers["Retry-After"] = str(action["retryAfter"])
            error.details = {"retryAfterSeconds": int(action["retryAfter"])}
        return error

    async def after(self, request: Request, response: Response) -> Response:
        """What rules want done once the request has been served (and committed), before the answer goes out."""
        for rule in request.scope["state"].get("faults", ()):
            action = rule.action
            if "kill" in action and action.get("when") == "after":
                os.kill(int(action["kill"]), signal.SIGKILL)
            if action.get("drop") == "after":
                raise ConnectionDroppedError
            if action.get("stall") and response.stream is not None:
                response.stream = _silence()
        return response

    def answer(self, request: Request) -> Response:
        """The paths under /lab."""
        if MASTERS not in request.user.groups:
            path = request.path
            text = f'User "{request.user.username}" cannot {request.method.lower()} path "{path}"'
            raise status.forbidden("", "", text)
        match (request.method, request.path.rstrip("/")):
            case ("GET", "/lab/faults"):
                return Response.json({"rules": [rule.body() for rule in self.rules]})
            case ("POST", "/lab/faults"):
                try:
                    body = json.loads(request.body)
                except ValueError as error:
                    raise status.bad_request(f"a fault rule must be JSON: {error}") from None
                rule = Rule.read(body)
                self.rules.append(rule)
                return Response.json(rule.body(), 201)
            case ("DELETE", "/lab/faults"):
                self.rules.clear()
                return Response.json({"rules": []})
            case ("GET", "/lab/calls"):
                return Response.json(self.calls.body())
            case ("DELETE", "/lab/calls"):
                self.calls.clear()
                return Response.json(self.calls.body())
            case ("GET", "/lab/stats"):
                rights = [{**asdict(asked), "count": count} for asked, count in self.asked.items()]
                return Response.json({"requests": self._statistics(), "rights": rights})
            case ("DELETE", "/lab/stats"):
                self.requests.clear()
                self.asked.clear()
                return Response.json({"requests": {}, "rights": []})
        raise status.page_not_found()

    def _statistics(self) -> dict[str, dict[str, int]]:
        out: dict[str, dict[str, int]] = {}
        for (agent, method), count in sorted(self.requests.items()):
            out.setdefault(agent, {})[method] = count
        return out


async def _silence() -> AsyncIterator[bytes]:
    yield b""
    await asyncio.Event().wait()
