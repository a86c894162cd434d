"""Azure Key Vault, through its secrets: certificate and key as one PEM text per version.

Key Vault cannot write on a condition, has no transactions, and its client repeats a PUT whose answer was lost, which
makes two versions. So nothing here counts versions or trusts "latest":

- The client's own retries are off. Whoever calls decides when to try again, and trying again begins with looking.
- A version is found by its tags. Of several for one rotation the oldest counts, for everybody; the others are disabled.
- `created` has whole seconds. The oldest is only certain once that second has passed on the service's clock (its Date
  header), so a version that young is looked at twice.

The Lease in the cluster keeps two rotations apart; this keeps them right should that ever fail.
"""

from __future__ import annotations

import email.utils
import hashlib
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from azure.keyvault.secrets import SecretClient

from capstan.audit import audited_step
from capstan.errors import (
    CapstanError,
    InvalidInput,
    NotFound,
    Retryable,
    ServerFault,
    Unreachable,
)
from capstan.vaults.base import (
    CONTENT_TAG,
    DESTROYED_TAG,
    FINGERPRINT_TAG,
    ROTATION_TAG,
    SUPERSEDED_TAG,
    Description,
    Fate,
    Reference,
    State,
    check_name,
    check_reason,
    check_size,
    checked_tags,
    destroyed_already,
)
from capstan.vaults.errors import calling
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from azure.core.credentials import TokenCredential
    from azure.keyvault.secrets import SecretProperties

T = TypeVar("T")

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_CONTENT_TYPE = "application/x-pem-file"
# Far beyond any processing time between reading the list and stamping the answer.
_SURELY_SETTLED = timedelta(seconds=30)
_SETTLING_STEP = 0.5
_SETTLING_STEPS = 20


class AzureKeyVault:
    """A `Vault` in an Azure Key Vault.

    Args:
        url: `https://NAME.vault.azure.net`, or its like in another cloud.
        credential: How to authenticate; default: azure-identity's DefaultAzureCredential.
        sleep: Waits the given seconds.
        client_options: Further arguments of SecretClient, such as `connection_verify`.
    """

    def __init__(
        self,
        url: str,
        credential: TokenCredential | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        **client_options: Any,
    ) -> None:
        self._url, self._client = secret_client(url, credential, **client_options)
        self._sleep = sleep

    @property
    def url(self) -> str:
        """The vault's URL without a trailing slash."""
        return self._url

    def describe(self) -> Description:
        """See `Vault.describe`."""
        protection = "by the service; who reads what is in its audit log, where diagnostic settings keep one"
        return Description(self._url, "azure-key-vault", protection)

    def ensure(self, name: str, mint: Callable[[], Material], tags: Mapping[str, str]) -> Reference:
        """See `Vault.ensure`."""
        check_name(name)
        tags = checked_tags(tags)
        # (1) Look: an earlier call, here or elsewhere, may have stored it.
        found = self._winner(name, tags)
        if found is None:
            # (2) Mint and store, once. Whether a failed answer means a failed write is unknown, so (3) decides.
            material = mint()
            check_size(material, self._where(name))
            failure = self._set(name, material, tags)
            # (3) Look again: our version, or an older one of somebody who was faster.
            found = self._winner(name, tags)
            if found is None:
                raise failure or ServerFault(
                    "a stored version is not listed",
                    where=self._where(name),
                    observed="no version with this rotation's tag",
                    expected="the version just stored",
                    delay=5.0,
                )
            self._disable_losers(name, material, tags, found)
        # (4) Read it back: what cannot be read, or is not what its tags say, is no key to go on with.
        return self._usable(found)

    def put(self, name: str, material: Material, tags: Mapping[str, str]) -> Reference:
        """See `Vault.put`."""
        check_name(name)
        tags = checked_tags(tags)
        check_size(material, self._where(name))
        latest = self._latest_if(name, material, tags)
        if latest is None:
            failure = self._set(name, material, tags)
            latest = self._latest_if(name, material, tags)
            if latest is None:
                raise failure or Unreachable(
                    "the version just stored is not the latest",
                    where=self._where(name),
                    observed="another value: somebody else is writing, or the service has not caught up",
                    expected=f"fingerprint {material.fingerprint}",
                    delay=5.0,
                )
        self.get(latest)
        return latest

    def get(self, reference: Reference) -> Material:
        """See `Vault.get`."""
        try:
            secret = self._call(
                "the version cannot be read",
                str(reference),
                lambda: self._client.get_secret(reference.name, reference.version),
            )
        except InvalidInput:
            for now in self._versions(reference.name)[0]:
                if now.version == reference.version and now.state is State.DESTROYED:
                    raise NotFound(
                        "this version was destroyed", where=str(reference), observed=now.tag[DESTROYED_TAG]
                    ) from None
            raise
        text = secret.value or ""
        content = hashlib.sha256(text.encode()).hexdigest()
        if reference.content_sha256 and content != reference.content_sha256:
            raise InvalidInput(
                "the vault holds something else than the reference says",
                where=str(reference),
                observed=f"content {content}",
                expected=f"content {reference.content_sha256}",
            )
        material = Material.parse(text, str(reference))
        if reference.fingerprint and material.fingerprint != reference.fingerprint:
            raise InvalidInput(
                "the vault holds something else than the reference says",
                where=str(reference),
                observed=f"fingerprint {material.fingerprint}",
                expected=f"fingerprint {reference.fingerprint}",
            )
        return material

    def find(self, tags: Mapping[str, str], name: str | None = None) -> Sequence[Reference]:
        """See `Vault.find`."""
        candidates = self.list() if name is None else self._versions(name)[0]
        found = [
            reference
            for reference in candidates
            if tags.items() <= reference.tag.items() and SUPERSEDED_TAG not in reference.tag
        ]
        return sorted(found, key=lambda reference: (reference.created, reference.version))

    def list(self) -> Sequence[Reference]:
        """See `Vault.list`. One request per secret, and one per 25 versions."""
        secrets = self._call(
            "the secrets cannot be listed",
            self._url,
            lambda: [properties.name or "" for properties in self._client.list_properties_of_secrets()],
        )
        return [version for name in sorted(secrets) for version in self._versions(name)[0]]

    def destroy(self, reference: Reference, reason: str) -> Fate:
        """See `Vault.destroy`. Key Vault deletes secrets, not versions, so the version is disabled and marked.

        To erase it, delete and purge the whole secret.
        """
        check_reason(reason, reference)
        for version in self._versions(reference.name)[0]:
            if version.version == reference.version:
                if version.state is not State.DESTROYED:
                    self._mark(version, {DESTROYED_TAG: reason})
                return Fate.DISABLED
        raise NotFound("no such version", where=str(reference), observed="not listed", expected="the stored version")

    # -- inside --

    def _where(self, name: str) -> str:
        return f"secret {name} in {self._url}"

    def _call(self, what: str, where: str, request: Callable[[], T]) -> T:
        return calling(what, where, request)

    def _set(self, name: str, material: Material, tags: Mapping[str, str]) -> Retryable | None:
        """Store a version. An error after which it may be stored all the same is returned, not raised."""
        own = {CONTENT_TAG: material.content_sha256, FINGERPRINT_TAG: material.fingerprint}
        try:
            with audited_step(f"vault.store/{name}"):
                self._call(
                    "the secret cannot be stored",
                    self._where(name),
                    lambda: self._client.set_secret(
                        name, material.unsafe_text(), tags=dict(tags) | own, content_type=_CONTENT_TYPE
                    ),
                )
        except (ServerFault, Unreachable) as error:
            return error
        return None

    def _versions(self, name: str) -> tuple[Sequence[Reference], datetime]:
        """All versions of one secret, oldest first, and the service's time before it listed the last page of them."""
        dates: list[datetime] = []

        def note_date(response: Any) -> None:
            with suppress(ValueError, TypeError):
                dates.append(email.utils.parsedate_to_datetime(response.http_response.headers.get("Date")))

        try:
            listed = self._call(
                "the versions cannot be listed",
                self._where(name),
                lambda: list_of(self._client.list_properties_of_secret_versions(name, raw_response_hook=note_date)),
            )
        except NotFound:
            listed = []
        references = [self._reference(name, properties) for properties in listed]
        references.sort(key=lambda reference: (reference.created, reference.version))
        return references, min(dates, default=_LONG_AGO)

    def _winner(self, name: str, tags: Mapping[str, str]) -> Reference | None:
        """The version that counts for this rotation, once no older one can appear any more."""
        before = _LONG_AGO
        for _ in range(_SETTLING_STEPS):
            versions, date = self._versions(name)
            mine = [version for version in versions if _belongs(version, tags)]
            if not mine:
                return None
            # `before` was the service's time when this listing had not begun: a second that was over then is complete.
            if before >= mine[0].created + timedelta(seconds=1) or date - mine[0].created > _SURELY_SETTLED:
                return mine[0]
            before = date
            if date < mine[0].created + timedelta(seconds=1):
                self._sleep(_SETTLING_STEP)
        raise ServerFault(
            "the vault's clock does not advance",
            where=self._where(name),
            observed=f"time {before.isoformat()} after version time {mine[0].created.isoformat()}",
            expected="a Date header later than the version's creation",
            delay=10.0,
        )

    def _disable_losers(self, name: str, material: Material, tags: Mapping[str, str], winner: Reference) -> None:
        """Take what we stored for nothing out of use. Failing is harmless: everybody still takes the oldest."""
        with suppress(CapstanError):
            for version in self._versions(name)[0]:
                ours = version.content_sha256 == material.content_sha256 and _belongs(version, tags)
                if ours and version.version != winner.version:
                    self._mark(version, {SUPERSEDED_TAG: winner.version})

    def _mark(self, version: Reference, mark: Mapping[str, str]) -> None:
        own = {CONTENT_TAG: version.content_sha256, FINGERPRINT_TAG: version.fingerprint}
        tags = dict(version.tags) | {key: value for key, value in own.items() if value} | dict(mark)
        self._call(
            "the version cannot be disabled",
            str(version),
            lambda: self._client.update_secret_properties(version.name, version.version, enabled=False, tags=tags),
        )

    def _usable(self, found: Reference) -> Reference:
        if found.state is State.DESTROYED:
            raise destroyed_already(found, found.tag[DESTROYED_TAG])
        self.get(found)
        return found

    def _latest_if(self, name: str, material: Material, tags: Mapping[str, str]) -> Reference | None:
        """The latest version, if it already is what is to be put."""
        try:
            secret = self._call("the secret cannot be read", self._where(name), lambda: self._client.get_secret(name))
        except NotFound:
            return None
        except InvalidInput:  # the latest version is disabled: it is no longer what anybody reads
            return None
        latest = self._reference(name, secret.properties)
        same = (secret.value or "") == material.unsafe_text() and dict(latest.tags) == dict(tags)
        return latest if same else None

    def _reference(self, name: str, properties: SecretProperties) -> Reference:
        tags = dict(properties.tags or {})
        enabled = bool(properties.enabled)
        shown = {key: value for key, value in tags.items() if key not in (CONTENT_TAG, FINGERPRINT_TAG)}
        return Reference(
            vault=self._url,
            name=name,
            version=properties.version or "",
            fingerprint=tags.get(FINGERPRINT_TAG, ""),
            content_sha256=tags.get(CONTENT_TAG, ""),
            tags=tuple(sorted(shown.items())),
            created=properties.created_on or _LONG_AGO,
            state=State.ENABLED if enabled else State.DESTROYED if DESTROYED_TAG in tags else State.DISABLED,
        )


def secret_client(
    url: str, credential: TokenCredential | None = None, **client_options: Any
) -> tuple[str, SecretClient]:
    """The vault's URL without a trailing slash, and a client that never repeats a request by itself.

    Args:
        credential: How to authenticate; default: azure-identity's DefaultAzureCredential.
        client_options: Further arguments of SecretClient, such as `connection_verify`.

    Raises:
        InvalidInput: Not the URL of a Key Vault.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise InvalidInput("not the URL of a Key Vault", observed=url, expected="https://NAME.vault.azure.net")
    if credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    options = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 30} | client_options
    return url.rstrip("/"), SecretClient(url.rstrip("/"), credential, **options)


def _belongs(version: Reference, tags: Mapping[str, str]) -> bool:
    if SUPERSEDED_TAG in version.tag:
        return False
    return ROTATION_TAG not in tags or version.tag.get(ROTATION_TAG) == tags[ROTATION_TAG]


def list_of(items: Iterable[T]) -> Sequence[T]:
    """All items; `list` is a method's name in this module's class."""
    return [*items]
