"""Who a request comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ANONYMOUS = "system:anonymous"
ALL_AUTHENTICATED = "system:authenticated"
ALL_UNAUTHENTICATED = "system:unauthenticated"
MASTERS = "system:masters"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True)
class User:
    """An authenticated (or the anonymous) user; `groups` in the order the authenticator found them."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict, hash=False)

    def info(self) -> dict[str, Any]:
        """The UserInfo of reviews and admission; empty members are left out."""
        members = {"username": self.username, "uid": self.uid, "groups": list(self.groups), "extra": self.extra}
        return {name: value for name, value in members.items() if value}


def anonymous() -> User:
    return User(ANONYMOUS, groups=(ALL_UNAUTHENTICATED,))
