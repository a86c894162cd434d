"""What the handlers of requests share: the store, the kinds, the clock, and how objects are rendered."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from .kinds import Registry
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from .access import Access
    from .kinds import KindInfo
    from .request import Request
    from .users import User

NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


@dataclass
class AdmissionAttributes:
    """What admission sees of a write. `operation`: CREATE, UPDATE, DELETE or CONNECT.

    `obj` is the new object (None for DELETE), `old` the stored one (None for CREATE); `name` is set even while
    metadata.name is not; `options` are the CreateOptions, UpdateOptions or DeleteOptions.
    """

    request: Request
    kind: KindInfo
    operation: str
    namespace: str
    name: str
    obj: dict[str, Any] | None
    old: dict[str, Any] | None = None
    subresource: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def user(self) -> User:
        user: User = self.request.user
        return user

    @property
    def dry_run(self) -> bool:
        return self.request.dry_run


class Admission(Protocol):
    """The chain of admission plugins and webhooks. Both raise ApiStatusError to refuse."""

    async def mutate(self, attributes: AdmissionAttributes) -> None:
        """May change `attributes.obj` in place or put another object there. Also decides on namespaces."""

    async def validate(self, attributes: AdmissionAttributes) -> None:
        """Sees the object as it would be stored."""


class AdmitAll:
    """Admission of a server without any."""

    async def mutate(self, attributes: AdmissionAttributes) -> None:
        """Nothing to change."""

    async def validate(self, attributes: AdmissionAttributes) -> None:
        """Nothing to refuse."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """metav1.Time: RFC 3339 in UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Api:
    """State and knobs of one server. `now` and `rng` are injected by tests."""

    store: Store = field(default_factory=Store)
    registry: Registry = field(default_factory=Registry)
    now: Callable[[], datetime] = utc_now
    rng: random.Random = field(default_factory=random.Random)
    admission: Admission = field(default_factory=AdmitAll)
    # reviews, tokens, kubelet subresources; None on a bare server
    access: Access | None = None

    def timestamp(self) -> str:
        return timestamp(self.now())

    def new_uid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def random_suffix(self) -> str:
        """The five letters which generateName appends (no vowels, no look-alikes)."""
        return "".join(self.rng.choice(NAME_LETTERS) for _ in range(5))


def manager_of(request: Request) -> str:
    """The field manager: as given, else the user agent up to the first slash (Kubernetes docs, Server-Side Apply)."""
    given = request.query.get("fieldManager")
    if given:
        return given
    agent = request.headers.get("user-agent", "").partition("/")[0]
    return agent[:128] or "unknown"
