"""Key Vault secrets that somebody else reads by name: the latest version is what counts, and texts count byte for byte.

`AzureKeyVault` keeps keys for Capstan, found by tag. This is for the secrets of the AKS Istio add-on, which belong to
the mesh: their text may hold what people put there (comments, several roots), it is never re-encoded, and a write is
made only where the latest version differs. Key Vault cannot write on a condition, so reading goes before every write
and after every lost answer; the client's own retries are off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capstan.audit import audited_step
from capstan.errors import InvalidInput, NotFound, Retryable, ServerFault, Unreachable
from capstan.vaults.azure_key_vault import secret_client
from capstan.vaults.base import CONTENT_TAG, FINGERPRINT_TAG, MAX_TAG_LENGTH, MAX_VALUE_BYTES, check_name
from capstan.vaults.errors import calling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from azure.core.credentials import TokenCredential

REPLACES_TAG = "capstan-replaces"
"""Tag of a version: the version that was the latest before it, to which a person can go back."""
_CONTENT_TYPE = "application/x-pem-file"


@dataclass(frozen=True, slots=True)
class SecretText:
    """One version of a secret, with its text.

    Attributes:
        text: Byte for byte; may be a private key, so no repr shows it.
        created: When the service stored it, aware UTC; None if it does not say.
    """

    name: str
    version: str
    text: str = field(repr=False)
    tags: tuple[tuple[str, str], ...] = ()
    created: datetime | None = None

    @property
    def content_sha256(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class SecretTexts:
    """The secrets of one Key Vault, by name.

    Args:
        url: `https://NAME.vault.azure.net`, or its like in another cloud.
        credential: How to authenticate; default: azure-identity's DefaultAzureCredential.
        client_options: Further arguments of SecretClient, such as `connection_verify`.

    Raises:
        InvalidInput: Not the URL of a Key Vault.
    """

    def __init__(self, url: str, credential: TokenCredential | None = None, **client_options: Any) -> None:
        self.url, self._client = secret_client(url, credential, **client_options)

    def latest(self, name: str) -> SecretText:
        """The version that its readers get.

        Raises:
            NotFound: No such secret; a deleted one counts as none.
            InvalidInput: Its latest version is disabled. Denied, Throttled, Unreachable, ServerFault: As the service.
        """
        return self._get(name, None)

    def version(self, name: str, version: str) -> SecretText:
        """One version, whether or not it is the latest.

        Raises:
            As `latest`.
        """
        return self._get(name, version)

    def find(self, name: str) -> SecretText | None:
        """As `latest`; None if there is no such secret.

        Raises:
            As `latest`, but for NotFound.
        """
        try:
            return self.latest(name)
        except NotFound:
            return None

    def put(self, name: str, text: str, tags: Mapping[str, str], *, fingerprint: str = "") -> tuple[SecretText, bool]:
        """Make `text` the latest version, unless it is; read back and compared before this returns.

        Args:
            tags: Kept with a new version; a version that is there already keeps its own.
            fingerprint: SHA-256 of what the text is about, kept as a tag.

        Returns:
            The latest version, and whether this call wrote it.

        Raises:
            InvalidInput: A disabled or deleted secret is in the way, or the text is too large. Nothing was written.
            Unreachable, ServerFault, Throttled, Denied: As the service; the same call may be repeated, and writes
                nothing if a lost answer was the answer to a write.
        """
        check_name(name)
        require_fits({name: text}, self.url)
        # 1. Look: an earlier try, whose answer was lost, may have stored it.
        before = self.find(name)
        if before is not None and before.text == text:
            return before, False
        # 2. Store, once. Whether a failed answer means a failed write is unknown, so 3. decides.
        failure = self._set(name, text, self._tags(text, tags, fingerprint, before))
        # 3. Look again. The latest is what everybody reads, whoever wrote it.
        after = self.find(name)
        if after is None or after.text != text:
            raise failure or Unreachable(
                "the version just stored is not the latest", where=self.where(name),
                observed=f"version {after.version if after else 'none'} with another text: somebody else is writing, "
                "or the service has not caught up",
                expected=f"a version with content {hashlib.sha256(text.encode()).hexdigest()[:16]}", delay=5.0,
            )  # fmt: skip
        return after, True

    def where(self, name: str) -> str:
        """For messages: `secret root-cert in https://NAME.vault.azure.net`."""
        return f"secret {name} in {self.url}"

    def _get(self, name: str, version: str | None) -> SecretText:
        secret = calling("the secret cannot be read", self.where(name), lambda: self._client.get_secret(name, version))
        properties = secret.properties
        return SecretText(
            name, properties.version or "", secret.value or "",
            tuple(sorted((properties.tags or {}).items())), properties.created_on,
        )  # fmt: skip

    def _set(self, name: str, text: str, tags: Mapping[str, str]) -> Retryable | None:
        """Store a version. An error after which it may be stored all the same is returned, not raised."""
        try:
            with audited_step(f"vault.store/{name}"):
                calling(
                    "the secret cannot be stored", self.where(name),
                    lambda: self._client.set_secret(name, text, tags=dict(tags), content_type=_CONTENT_TYPE),
                )  # fmt: skip
        except (ServerFault, Unreachable) as error:
            return error
        return None

    @staticmethod
    def _tags(text: str, tags: Mapping[str, str], fingerprint: str, before: SecretText | None) -> dict[str, str]:
        own = {
            CONTENT_TAG: hashlib.sha256(text.encode()).hexdigest(),
            FINGERPRINT_TAG: fingerprint,
            REPLACES_TAG: before.version if before else "",
        }
        kept = {key: value[:MAX_TAG_LENGTH] for key, value in tags.items()} | own
        return {key: value for key, value in kept.items() if value}


def require_fits(texts: Mapping[str, str], url: str) -> None:
    """Refuse texts that a Key Vault would not take, before the first of them is written.

    Raises:
        InvalidInput: One is larger than 25 KB; names all that are.
    """
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    too_large = {name: size for name, size in sizes.items() if size > MAX_VALUE_BYTES}
    if too_large:
        raise InvalidInput(
            "too large for a Key Vault secret", where=f"{_listed(too_large)} in {url}",
            observed=", ".join(f"{name}: {size} bytes" for name, size in too_large.items()),
            expected=f"at most {MAX_VALUE_BYTES} bytes each (Key Vault service limits)",
            next_command="drop expired roots from the bundle",
        )  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    return "secrets " + ", ".join(sorted(names))
