"""Who is told of what: the `notifications` part of an inventory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from capstan.errors import InvalidInput


class Notified(StrEnum):
    """What people can be told of."""

    WAITING_FOR_APPROVAL = "waiting-for-approval"
    """A run is suspended until somebody decides."""
    FINISHED = "finished"
    """A rotation is done: the old root is refused everywhere."""
    FAILED = "failed"
    """A run of ours has ended with an error, whether or not its process lived to say so."""
    ROLLED_BACK = "rolled-back"
    """A domain is back on its old roots."""
    STRAGGLER = "straggler"
    """A wait has passed its bound, and somebody has not arrived."""
    EXPIRY = "expiry"
    """A certificate ends soon, or a check of the mesh fails."""
    BUDGET_EXHAUSTED = "budget-exhausted"
    """A run died again and again, and the sweep has left it dead."""
    NOT_RECOVERED = "not-recovered"
    """A run died and nothing has brought it back: the sweep or the workers do not run."""


class WebhookTarget(BaseModel):
    """Where notifications are sent: one HTTP POST each, JSON, with `text` as chat systems want it and fields beside."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr | None = Field(
        default=None, description="The webhook's URL. It is a secret: better name a variable with url_from_env"
    )
    url_from_env: str | None = Field(
        default=None, min_length=1, description="Environment variable that has the URL when `capstan deploy` runs"
    )
    allow_private_urls: bool = Field(
        default=True, description="Whether the URL may be on a private network, which is where most receivers are"
    )
    verify: bool = Field(default=True, description="Whether the receiver's TLS certificate must verify")

    @field_validator("url")
    @classmethod
    def _http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _require_http(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.url_from_env is None):
            msg = "give one of url and url_from_env"
            raise ValueError(msg)
        return self

    def resolved(self, environment: Mapping[str, str] | None = None) -> SecretStr:
        """The URL itself.

        Args:
            environment: Where `url_from_env` is looked up; default: this process's.

        Raises:
            InvalidInput: The variable is not set, or has no http(s) URL.
        """
        if self.url is not None:
            return self.url
        name = str(self.url_from_env)
        value = (os.environ if environment is None else environment).get(name, "")
        try:
            _require_http(value)
        except ValueError as error:
            raise InvalidInput(
                "the webhook's URL is not known",
                where=f"environment variable {name}",
                observed="it is not set" if not value else str(error),
                expected="an http or https URL",
                next_command=f"export {name}=https://..., then capstan deploy again",
            ) from error
        return SecretStr(value)


class Notifications(BaseModel):
    """Notifications of one inventory: to one webhook, of the events listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    webhook: WebhookTarget = Field(description="Where notifications are sent")
    events: frozenset[Notified] = Field(default=frozenset(Notified), description="What is told; default: everything")
    not_recovered_after: timedelta = Field(
        default=timedelta(minutes=30),
        ge=timedelta(seconds=10),
        description="How long a run may stay crashed before it is told that nothing brings it back",
    )


def _require_http(url: str) -> None:
    """Raises ValueError, without the URL in it, unless it is one of http or https."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        msg = "it is no http or https URL"
        raise ValueError(msg)
