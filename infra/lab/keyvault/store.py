"""The state of a vault: secrets, their versions, soft deletion. No HTTP here."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken

if TYPE_CHECKING:
    from collections.abc import Callable

# "About Key Vault secrets" and "Azure Key Vault service limits" (learn.microsoft.com).
NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
MAX_VALUE_BYTES = 25 * 1024
MAX_TAGS = 15
MAX_TAG_LENGTH = 256
MAX_CONTENT_TYPE_LENGTH = 255
RECOVERY_LEVEL = "Recoverable+Purgeable"
RECOVERABLE_DAYS = 90
_DAY = 86400


class VaultError(Exception):
    """An answer other than success: HTTP status, `error.code`, `error.innererror.code` (or none), message."""

    def __init__(self, status: int, code: str, message: str, inner: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.inner = inner
        self.message = message


@dataclass
class Version:
    """One version. Times are seconds since the epoch, whole ones on the wire."""

    id: str
    value: str
    created: float
    updated: float
    enabled: bool = True
    not_before: int | None = None
    expires: int | None = None
    content_type: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Secret:
    """A name and its versions, oldest first.

    Attributes:
        deleted: When it was deleted, or None.
        visible: From when on the last deletion or recovery shows: the service needs a moment for either.
    """

    name: str
    versions: list[Version] = field(default_factory=list)
    deleted: float | None = None
    visible: float = 0.0

    @property
    def latest(self) -> Version:
        """The newest version."""
        return self.versions[-1]


def not_found(name: str) -> VaultError:
    """404, in the service's words."""
    return VaultError(
        404,
        "SecretNotFound",
        f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted this secret you may"
        " be able to recover it using the correct recovery command. For help resolving this issue, please see"
        " https://go.microsoft.com/fwlink/?linkid=2125182",
    )


class Store:
    """The secrets of one vault. Names are compared without their case, and shown as they were first written.

    Args:
        clock: Seconds since the epoch.
        lag: Seconds that a deletion or recovery takes to show.
        known: Secrets it has from before.
        backup_key: With which it seals backups (Fernet); default: a new one.
    """

    def __init__(
        self, clock: Callable[[], float], lag: float, known: dict[str, Secret] | None = None, backup_key: str = ""
    ) -> None:
        self.secrets: dict[str, Secret] = known or {}
        self.backup_key = backup_key or Fernet.generate_key().decode()
        self._clock = clock
        self._lag = lag
        self._backup = Fernet(self.backup_key)

    def set(self, name: str, body: dict[str, Any]) -> tuple[Secret, Version]:
        """A new version (never compared with the last: setting twice makes two)."""
        self._check_name(name)
        value = body.get("value")
        if not isinstance(value, str):
            raise VaultError(400, "BadParameter", "The property value is required.")
        if len(value.encode()) > MAX_VALUE_BYTES:
            raise VaultError(400, "BadParameter", f"The value exceeds the maximum of {MAX_VALUE_BYTES} bytes.")
        secret = self._held(name)
        if secret is not None and self._clock() < secret.visible:
            doing = "Deleted" if secret.deleted is not None else "Recovered"
            raise VaultError(
                409, "Conflict", f"Secret {name} is currently being {doing.lower()}.", f"ObjectIsBeing{doing}"
            )
        if secret is not None and secret.deleted is not None:
            raise VaultError(
                409,
                "Conflict",
                f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this"
                " state, the secret can only be recovered or purged.",
                "ObjectIsDeletedButRecoverable",
            )
        now = self._clock()
        version = Version(secrets.token_hex(16), value, now, now)
        self._apply(version, body)
        secret = secret or self.secrets.setdefault(name, Secret(name))
        secret.versions.append(version)
        return secret, version

    def update(self, name: str, version_id: str, body: dict[str, Any]) -> tuple[Secret, Version]:
        """Change attributes, content type or tags of one version; never the value."""
        secret, version = self.find(name, version_id)
        self._apply(version, body)
        version.updated = self._clock()
        return secret, version

    def find(self, name: str, version_id: str) -> tuple[Secret, Version]:
        """A version by id, the latest where the id is empty."""
        secret = self._held(name)
        if secret is None or secret.deleted is not None or self._clock() < secret.visible:
            raise not_found(name)
        for version in secret.versions if version_id else [secret.latest]:
            if version.id == version_id or not version_id:
                return secret, version
        raise not_found(f"{name}/{version_id}")

    def readable(self, name: str, version_id: str) -> tuple[Secret, Version]:
        """As `find`, for reading the value."""
        secret, version = self.find(name, version_id)
        if not version.enabled:
            raise VaultError(403, "Forbidden", "Operation get is not allowed on a disabled secret.", "SecretDisabled")
        return secret, version

    def versions(self, name: str) -> list[tuple[Secret, Version]]:
        """All versions by id, not by age: the service promises no order.

        A name that is not there has none, and is no error (recorded by Microsoft's test-suite from the service:
        test_samples_secrets, test_example_secret_list_operations).
        """
        try:
            secret, _ = self.find(name, "")
        except VaultError:
            return []
        return [(secret, version) for version in sorted(secret.versions, key=lambda version: version.id)]

    def all(self) -> list[Secret]:
        """Live secrets by name."""
        now = self._clock()
        return [s for _, s in sorted(self.secrets.items()) if s.deleted is None and now >= s.visible]

    def all_deleted(self) -> list[Secret]:
        """Deleted secrets by name."""
        now = self._clock()
        return [s for _, s in sorted(self.secrets.items()) if s.deleted is not None and now >= s.visible]

    def delete(self, name: str) -> Secret:
        """Soft-delete all versions."""
        secret, _ = self.find(name, "")
        secret.deleted = self._clock()
        secret.visible = secret.deleted + self._lag
        return secret

    def deleted(self, name: str) -> Secret:
        """A deleted secret."""
        secret = self._held(name)
        if secret is None or secret.deleted is None or self._clock() < secret.visible:
            raise VaultError(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        return secret

    def recover(self, name: str) -> Secret:
        """Undo a deletion."""
        secret = self.deleted(name)
        secret.deleted = None
        secret.visible = self._clock() + self._lag
        return secret

    def purge(self, name: str) -> None:
        """Erase a deleted secret."""
        del self.secrets[self.deleted(name).name]

    def backup(self, name: str) -> bytes:
        """All versions, sealed for this vault."""
        secret, _ = self.find(name, "")
        state = {"name": secret.name, "versions": [vars(version) for version in secret.versions]}
        return self._backup.encrypt(json.dumps(state).encode())

    def restore(self, sealed: bytes) -> Secret:
        """The inverse of `backup`; refuses a name in use."""
        try:
            state = json.loads(self._backup.decrypt(sealed))
        except InvalidToken:
            raise VaultError(400, "BadParameter", "Backup blob contains invalid or corrupt data.") from None
        if self._held(state["name"]) is not None:
            raise VaultError(409, "Conflict", f"A secret with name {state['name']} already exists.")
        secret = Secret(state["name"], [Version(**fields) for fields in state["versions"]])
        self.secrets[secret.name] = secret
        return secret

    def deletion_times(self, secret: Secret) -> tuple[int, int]:
        """When it was deleted and when the service would purge it, whole seconds."""
        deleted = int(secret.deleted or 0)
        return deleted, deleted + RECOVERABLE_DAYS * _DAY

    def _held(self, name: str) -> Secret | None:
        """The secret of that name, deleted or not."""
        if name in self.secrets:
            return self.secrets[name]
        return next((held for key, held in self.secrets.items() if key.lower() == name.lower()), None)

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise VaultError(400, "BadParameter", f"The request URI contains an invalid name: {name}")

    def _apply(self, version: Version, body: dict[str, Any]) -> None:
        """Take attributes, content type and tags over; nothing of them if one is wrong."""
        tags, content_type = body.get("tags"), body.get("contentType")
        attributes = body.get("attributes") or {}
        if tags is not None:
            _check_tags(tags)
        if content_type is not None and (
            not isinstance(content_type, str) or len(content_type) > MAX_CONTENT_TYPE_LENGTH
        ):
            raise VaultError(400, "BadParameter", f"contentType has at most {MAX_CONTENT_TYPE_LENGTH} characters.")
        if not isinstance(attributes, dict):
            raise VaultError(400, "BadParameter", "attributes is no object.")
        times = [attributes.get(name) for name in ("nbf", "exp")]
        if any(moment is not None and (not isinstance(moment, int) or moment < 0) for moment in times):
            raise VaultError(400, "BadParameter", "nbf and exp are seconds since 1970.")
        if tags is not None:
            version.tags = dict(tags)
        if content_type is not None:
            version.content_type = content_type
        if attributes.get("enabled") is not None:
            version.enabled = bool(attributes["enabled"])
        version.not_before = attributes.get("nbf", version.not_before)
        version.expires = attributes.get("exp", version.expires)


def _check_tags(tags: Any) -> None:
    fits = (
        isinstance(tags, dict)
        and len(tags) <= MAX_TAGS
        and all(isinstance(value, str) and max(len(key), len(value)) <= MAX_TAG_LENGTH for key, value in tags.items())
    )
    if not fits:
        raise VaultError(400, "BadParameter", f"At most {MAX_TAGS} tags of {MAX_TAG_LENGTH} characters.")
