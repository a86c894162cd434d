"""What every vault promises. `tests/vaults/test_conformance.py` states each promise and runs on every implementation.

A vault keeps immutable versions of named secrets. Everything but `get` deals in `Reference`s, which are safe to log, to
pass between tasks and to write into records.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from capstan.vaults.material import Material

ROTATION_TAG = "capstan-rotation"
"""Ties a version to the rotation that minted it: `ensure` mints at most once per name and value of this tag."""
CONTENT_TAG = "capstan-content"
"""Tag a vault sets itself: SHA-256 of the value, for read-compare-write."""
FINGERPRINT_TAG = "capstan-fingerprint"
"""Tag a vault sets itself: `Material.fingerprint`."""
DESTROYED_TAG = "capstan-destroyed"
"""Tag a vault sets itself: why the version was destroyed."""
SUPERSEDED_TAG = "capstan-superseded"
"""Tag a vault sets itself: this version lost a race of two writers to the version named; nobody may use it."""

RESERVED_TAGS = frozenset({CONTENT_TAG, FINGERPRINT_TAG, DESTROYED_TAG, SUPERSEDED_TAG})

# The strictest of the implementations rules them all, so that moving to Key Vault never fails on a name. Source:
# Azure Key Vault documentation, "About Key Vault secrets": names of 1-127 letters, digits and hyphens; at most 15 tags,
# names and values of at most 256 characters. Four tags are ours.
_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_MAX_TAGS = 15 - len(RESERVED_TAGS)
MAX_TAG_LENGTH = 256
"""Longest tag name and longest tag value."""
MAX_VALUE_BYTES = 25 * 1024
"""Largest value of one secret. Source: Azure Key Vault documentation, "Azure Key Vault service limits": 25 KB."""


class State(StrEnum):
    """Whether a version can be read."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Reference:
    """One version of one secret, without its value.

    Attributes:
        vault: The vault's URL.
        name: Name of the secret.
        version: Which version; opaque.
        fingerprint: `Material.fingerprint` of the value.
        content_sha256: SHA-256 (hex) of the value.
        tags: Tags as given to `ensure` or `put`, sorted by name.
        created: When it was stored, aware UTC.
        state: Whether `get` can read it.
    """

    vault: str
    name: str
    version: str
    fingerprint: str
    content_sha256: str
    tags: tuple[tuple[str, str], ...]
    created: datetime
    state: State = State.ENABLED

    @property
    def tag(self) -> Mapping[str, str]:
        """The tags as a mapping."""
        return MappingProxyType(dict(self.tags))

    def __str__(self) -> str:
        return f"{self.name}@{self.version} in {self.vault}"

    def as_json(self) -> dict[str, Any]:
        """The reference as plain JSON values, for records and evidence."""
        return {
            "vault": self.vault,
            "name": self.name,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "content_sha256": self.content_sha256,
            "tags": dict(self.tags),
            "created": self.created.isoformat(),
            "state": str(self.state),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reference:
        """The inverse of `as_json`.

        Raises:
            InvalidInput: A field is missing or malformed.
        """
        try:
            return cls(
                vault=str(value["vault"]),
                name=str(value["name"]),
                version=str(value["version"]),
                fingerprint=str(value["fingerprint"]),
                content_sha256=str(value["content_sha256"]),
                tags=tuple(sorted((str(k), str(v)) for k, v in value["tags"].items())),
                created=datetime.fromisoformat(value["created"]),
                state=State(value["state"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(
                "this is no reference to a vault entry",
                observed=f"{type(error).__name__}: {error}",
                expected="the object that Reference.as_json wrote",
            ) from error


class Fate(StrEnum):
    """What destroying a version really did; vaults differ in what they can promise."""

    ERASED = "erased"
    """The value is gone from the vault (not necessarily from backups, snapshots or flash cells)."""
    DISABLED = "disabled"
    """It cannot be read any more, but the service still stores it: it only deletes whole secrets, not versions."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a vault is, for `check` and for the evidence.

    Attributes:
        url: As `open_vault` takes it.
        kind: `local` or `azure-key-vault`.
        protection: How values are protected at rest, in one sentence.
    """

    url: str
    kind: str
    protection: str


class Vault(Protocol):
    """A place for private keys."""

    @property
    def url(self) -> str:
        """The vault's URL, as `open_vault` takes it."""

    def ensure(self, name: str, mint: Callable[[], Material], tags: Mapping[str, str]) -> Reference:
        """The version of `name` that belongs to this rotation; minted and stored only if there is none yet.

        Identity is the name and the value of `capstan-rotation` in `tags`; without that tag, the name alone. Other tags
        are stored with a new version and otherwise ignored. However often it is called, by however many processes,
        interrupted wherever: all callers get the same version, and `mint` results that lost are never returned.

        Args:
            name: Name of the secret: 1-127 letters, digits and hyphens.
            mint: Makes the value; called at most once per call, and not at all if a version exists.
            tags: At most 11, of at most 256 characters each.

        Raises:
            InvalidInput: A name, tag or value the vault cannot take; the version was destroyed, disabled or damaged.
            Retryable: No answer, throttled, or a fault on the other side; the same call may be repeated.
            Denied: Permission is missing.
        """

    def put(self, name: str, material: Material, tags: Mapping[str, str]) -> Reference:
        """Make `material` the latest version of `name`; writes nothing if the latest already equals it.

        Equal means: the same value and the same `tags`. The stored version is read back before this returns.

        Raises:
            As `ensure`.
        """

    def get(self, reference: Reference) -> Material:
        """The value. The only call that returns a private key.

        Raises:
            NotFound: No such version, or it was destroyed.
            InvalidInput: It is disabled, or not what the reference says.
            Retryable: As `ensure`.
            Denied: Permission is missing.
        """

    def find(self, tags: Mapping[str, str], name: str | None = None) -> Sequence[Reference]:
        """Every version that carries all of `tags`, oldest first; destroyed ones too, losers of a race left out."""

    def list(self) -> Sequence[Reference]:
        """Every version of every secret, by name and age; metadata only, destroyed ones included."""

    def destroy(self, reference: Reference, reason: str) -> Fate:
        """Make the version unreadable for good, as far as the vault can; `get` raises NotFound from then on.

        The reason is kept. `ensure` for the same rotation refuses afterwards instead of minting again. Repeating it is
        harmless.

        Raises:
            NotFound: No such version.
            InvalidInput: No reason.
        """

    def describe(self) -> Description:
        """What this vault is; reads nothing."""


def destroyed_already(reference: Reference, reason: str) -> InvalidInput:
    """The error for asking again for a key that was destroyed."""
    return InvalidInput(
        "the key of this rotation was destroyed; a second one is never minted for it",
        where=str(reference),
        observed=f"destroyed: {reason}",
        expected="a usable version",
        next_command="start a new rotation",
    )


def check_name(name: str) -> None:
    """Refuse a name that some vault would not take.

    Raises:
        InvalidInput: It breaks the rule.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "not a name for a secret", observed=repr(name), expected="1-127 letters, digits and hyphens (Key Vault)"
        )


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, sorted by name.

    Raises:
        InvalidInput: Too many, too long, empty, or one of those a vault sets itself.
    """
    for key, value in tags.items():
        if key in RESERVED_TAGS:
            raise InvalidInput("this tag is set by the vault itself", observed=key, expected="another tag name")
        if not 0 < len(key) <= MAX_TAG_LENGTH or not 0 < len(value) <= MAX_TAG_LENGTH:
            raise InvalidInput(
                "a tag does not fit",
                observed=f"{key!r}: {len(key)} and {len(value)} characters",
                expected=f"1-{MAX_TAG_LENGTH} characters each (Key Vault)",
            )
    if len(tags) > _MAX_TAGS:
        raise InvalidInput("too many tags", observed=f"{len(tags)} tags", expected=f"at most {_MAX_TAGS}")
    return dict(sorted(tags.items()))


def check_reason(reason: str, reference: Reference) -> None:
    """Refuse to destroy without a reason that fits a tag.

    Raises:
        InvalidInput: It is empty or too long.
    """
    if not reason.strip() or len(reason) > MAX_TAG_LENGTH:
        raise InvalidInput(
            "destroying a key needs a reason",
            where=str(reference),
            observed=f"{len(reason)} characters",
            expected=f"1-{MAX_TAG_LENGTH} characters",
        )


def check_size(material: Material, where: str) -> None:
    """Refuse a value that some vault would not take.

    Raises:
        InvalidInput: It is larger than 25 KB.
    """
    size = len(material.unsafe_text().encode())
    if size > MAX_VALUE_BYTES:
        raise InvalidInput(
            "the value is too large for a vault",
            where=where,
            observed=f"{size} bytes",
            expected=f"at most {MAX_VALUE_BYTES} bytes (Key Vault service limits)",
            next_command="split the bundle, or drop expired roots from it",
        )


def put_group(vault: Vault, items: Sequence[tuple[str, Material]], tags: Mapping[str, str]) -> tuple[Reference, ...]:
    """Write several secrets that only make sense together, in the order given.

    No vault has transactions over several secrets, so the order is the caller's safety: put first what readers can bear
    to see early (a bundle with one root more), last what needs the others. A repeated call continues where the first
    broke off, since `put` writes only differences.

    Raises:
        As `Vault.put`; secrets before the failing one are stored, those after it are not.
    """
    return tuple(vault.put(name, material, tags) for name, material in items)
