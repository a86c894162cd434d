"""Faults on demand: what goes wrong, on which operation, how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.lab.keyvault.store import VaultError

Effect = Literal["answer", "disconnect", "delay"]


@dataclass
class Fault:
    """One thing going wrong.

    Attributes:
        operation: `set`, `get`, `update`, `delete`, `list`, `versions`, `backup`, `restore`, `get-deleted`,
            `list-deleted`, `recover`, `purge`, `token`, or `*`.
        effect: `answer` with an error, `disconnect` without any answer, or `delay` the true answer.
        status: HTTP status of the error answer.
        code: `error.code` in it.
        inner: `error.innererror.code` in it.
        message: `error.message` in it.
        retry_after: Seconds in a Retry-After header.
        seconds: How long `delay` takes.
        after_commit: Carry the operation out first; only the answer is lost or replaced.
        skip: Let this many matching requests pass first.
        times: Then strike this many times.
    """

    operation: str
    effect: Effect = "answer"
    status: int = 503
    code: str = "ServiceUnavailable"
    inner: str | None = None
    message: str = "The service is unavailable."
    retry_after: float | None = None
    seconds: float = 0.0
    after_commit: bool = False
    skip: int = 0
    times: int = 1

    @classmethod
    def throttled(cls, operation: str = "*", retry_after: float = 1, times: int = 1) -> Fault:
        """429, as a vault over its transaction limit answers."""
        message = (
            "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"
        )
        return cls(operation, status=429, code="Throttled", message=message, retry_after=retry_after, times=times)

    @classmethod
    def forbidden(cls, operation: str = "*", inner: str = "ForbiddenByRbac", times: int = 1) -> Fault:
        """403, as for an identity without the role."""
        message = "Caller is not authorized to perform action on resource."
        return cls(operation, status=403, code="Forbidden", inner=inner, message=message, times=times)

    def error(self) -> VaultError:
        """The error to answer with."""
        return VaultError(self.status, self.code, self.message, self.inner)


@dataclass
class Faults:
    """The faults that wait for their request, and what has been asked so far."""

    waiting: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Let `fault` strike."""
        self.waiting.append(fault)

    def clear(self) -> None:
        """No more faults."""
        self.waiting.clear()

    def strike(self, operation: str) -> Fault | None:
        """The fault for this request, if one is due; counts it."""
        self.requests.append(operation)
        for fault in self.waiting:
            if fault.operation not in (operation, "*"):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.times <= 0:
                self.waiting.remove(fault)
            return fault
        return None
