"""Citadel's main work: one Secret `istio.<service account>` per service account, kept as it should be.

Rules and words are those of security/pkg/k8s/controller/workloadsecret.go of release 1.4 and of the recorded 1.3
(tests/vectors/controllers/istio-citadel).
"""

from __future__ import annotations

import asyncio
import base64
import copy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509

from infra.lab.client import ApiError, Informer
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from infra.lab.istio.istiod.bundle import BundleError
from infra.lab.istio.istiod.selfsigned import ca_pair
from infra.lab.linkerd.flags import format_duration
from infra.lab.linkerd.gotext import go_now, go_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from infra.lab.client import KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.selfsigned import SelfSigned

JSON = dict[str, Any]
TYPE = "istio.io/key-and-cert"
ACCOUNT_ANNOTATION = "istio.io/service-account.name"
OVERRIDE_LABEL, MANAGED_LABEL = "ca.istio.io/override", "ca.istio.io/env"
PREFIX = "istio."
WEBHOOK_SERVICES = {
    "istio-sidecar-injector-service-account": "istio-sidecar-injector",
    "istio-galley-service-account": "istio-galley",
}
"""Accounts of Citadel's own namespace whose leaves also serve a webhook, so the API server must know them by name."""
_SCOPE = "k8sController"
_ATTEMPTS = 3
_RECOMMENDED_GRACE = 0.2, 0.8
# istio-ca-secret is read every 100 ms for five seconds, of the 60 s of a resync.
_LOADS, _LOAD_PAUSE = 51, 0.1 / 60


@dataclass(frozen=True)
class Options:
    """What a Citadel is told about workload Secrets.

    Attributes:
        namespaces: Listened to; empty for all.
        by_default: Whether a namespace without label is managed.
        resync: How often every Secret is looked at again (60 s there).
        grace: Part of a leaf's life, at its end, in which it is renewed.
        min_grace: It is renewed at least so long before its end.
        dns_names: DNS names beside the SPIFFE ID in the leaf of an account, by `ACCOUNT.NAMESPACE`.
    """

    trust_domain: str
    storage: str
    leaf_ttl: timedelta
    namespaces: frozenset[str] = field(default_factory=frozenset)
    by_default: bool = True
    resync: timedelta = timedelta(seconds=60)
    grace: float = 0.5
    min_grace: timedelta = timedelta(minutes=10)
    dns_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sync_pause(self) -> timedelta:
        """For so long after a look at istio-ca-secret it is not read again (30 s there)."""
        return self.resync / 2


def dns_names(storage: str, custom: str) -> dict[str, tuple[str, ...]]:
    """Which accounts get DNS names: those of the webhooks in Citadel's own namespace, and what is asked for.

    Args:
        custom: --custom-dns-names: `ACCOUNT.NAMESPACE:NAME`, separated by commas; what is not of that form is left out.
    """
    found: dict[str, tuple[str, ...]] = {
        f"{account}.{storage}": (f"{service}.{storage}.svc", f"{service}.{storage}")
        for account, service in WEBHOOK_SERVICES.items()
    }
    for entry in custom.split(","):
        account, colon, name = entry.partition(":")
        if colon and ":" not in name:
            found[account] = (*found.get(account, ()), name)
    return found


class Workloads:
    """The Secrets of all listened namespaces. One piece of work is done at a time, in order, as there."""

    def __init__(
        self,
        options: Options,
        authority: Authority,
        source: SelfSigned | None,
        client: KubeClient,
        out: Log,
        clock: Callable[[], datetime],
    ) -> None:
        self._authority = authority
        self._options = options
        self._source = source
        self._client = client
        self._out = out
        self._clock = clock
        self._synced_at: datetime | None = None
        self._secrets = Informer(client, "/api/v1/secrets", fieldSelector=f"type={TYPE}")
        self._accounts = Informer(client, "/api/v1/serviceaccounts")
        self._namespaces = Informer(client, "/api/v1/namespaces")
        self._work: asyncio.Queue[tuple[Callable[[str, str], Any], str, str]] = asyncio.Queue()

    async def run(self) -> None:
        """Work until cancelled."""
        informers = (self._secrets, self._namespaces, self._accounts)
        resync: asyncio.Task[None] | None = None
        low, high = _RECOMMENDED_GRACE
        if not low <= self._options.grace <= high:
            window = f"recommended window [{low:.2f}, {high:.2f}]"
            self._out.warn(f"grace period ratio {self._options.grace:f} is out of the {window}", _SCOPE)
        try:
            await self._namespaces.synced()
            await self._secrets.synced()  # before the accounts: what is there already must not look missing
            resync = asyncio.create_task(self._resync())
            self._secrets.on_change(self._secret_changed)
            await self._accounts.synced()
            self._accounts.on_change(self._account_changed)
            self._namespaces.on_change(self._namespace_changed)
            while True:
                method, namespace, name = await self._work.get()
                try:
                    await method(namespace, name)
                except ApiError as error:
                    self._out.error(f"{namespace}/{name}: {error.message}", _SCOPE)
        finally:
            if resync is not None:
                resync.cancel()
                await asyncio.gather(resync, return_exceptions=True)
            await asyncio.gather(*(informer.stop() for informer in informers))

    # --- events -----------------------------------------------------------------------------------------------------

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._options.resync.total_seconds())
            for namespace, name in list(self._secrets.objects):
                self._work.put_nowait((self._updated, namespace, name))

    def _secret_changed(self, kind: str, old: JSON | None, item: JSON) -> None:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        if not self._listens(namespace):
            return
        if kind == "DELETED":
            account = (item["metadata"].get("annotations") or {}).get(ACCOUNT_ANNOTATION, "")
            self._work.put_nowait((self._recreate, namespace, account))
        elif old is not None:
            self._work.put_nowait((self._updated, namespace, name))

    def _account_changed(self, kind: str, old: JSON | None, item: JSON) -> None:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        if not self._listens(namespace):
            return
        identity = f"spiffe://{self._options.trust_domain}/ns/{namespace}/sa/{name}"
        if kind == "DELETED":
            self._out.info(f'deleting registry entry "{identity}" -> "{identity}"')
            self._work.put_nowait((self._delete, namespace, name))
        elif old is None:
            self._out.info(f'adding registry entry "{identity}" -> "{identity}"')
            self._work.put_nowait((self._upsert, namespace, name))

    def _namespace_changed(self, kind: str, old: JSON | None, item: JSON) -> None:
        """A namespace that becomes managed gets the Secrets of the accounts it has."""
        if kind == "DELETED" or old is None or self._is_managed(old) or not self._is_managed(item):
            return
        for namespace, name in list(self._accounts.objects):
            if namespace == item["metadata"]["name"] and self._listens(namespace):
                self._work.put_nowait((self._upsert, namespace, name))

    def _listens(self, namespace: str) -> bool:
        return not self._options.namespaces or namespace in self._options.namespaces

    def _managed(self, namespace: str) -> bool:
        """By the namespace's labels; one that is listened to by name always is."""
        if namespace in self._options.namespaces:
            return True
        return self._labelled(namespace)

    def _labelled(self, namespace: str) -> bool:
        return self._is_managed(self._namespaces.get("", namespace) or {"metadata": {}})

    def _is_managed(self, namespace: JSON) -> bool:
        labels = namespace["metadata"].get("labels") or {}
        override = labels.get(OVERRIDE_LABEL)
        if override in ("true", "false"):
            return bool(override == "true")
        if MANAGED_LABEL not in labels:
            return self._options.by_default
        return bool(labels[MANAGED_LABEL] == self._options.storage)

    # --- work -------------------------------------------------------------------------------------------------------

    async def _upsert(self, namespace: str, account: str) -> None:
        name = PREFIX + account
        if not self._managed(namespace) or self._secrets.get(namespace, name) is not None:
            return
        data = await self._data(namespace, account)
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "annotations": {ACCOUNT_ANNOTATION: account}},
            "type": TYPE,
            "data": data,
        }
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._client.create(f"/api/v1/namespaces/{namespace}/secrets", body)
            except ApiError as error:
                if error.status == 409:
                    self._out.info(f"Secret {namespace}/{name} already exists, skip", _SCOPE)
                    return
                text = f"in attempt {attempt}/{_ATTEMPTS}, (error: {error.message})"
                self._out.error(f"Failed to create secret {namespace}/{name} {text}", _SCOPE)
                await asyncio.sleep(1)
            else:
                self._out.info(f"Secret {namespace}/{name} is created successfully", _SCOPE)
                return

    async def _delete(self, namespace: str, account: str) -> None:
        name = PREFIX + account
        try:
            await self._client.delete(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except ApiError as error:
            if error.status != 404:
                self._out.error(f"Failed to delete secret {namespace}/{name} (error: {error.message})", _SCOPE)
                return
        self._out.info(f"Secret {namespace}/{name} deleted successfully", _SCOPE)

    async def _recreate(self, namespace: str, account: str) -> None:
        try:
            await self._client.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}")
        except ApiError:
            return
        self._out.info(f"Re-creating deleted secret {namespace}/{PREFIX}{account}.", _SCOPE)
        await self._upsert(namespace, account)

    async def _updated(self, namespace: str, name: str) -> None:
        """A Secret as it is now: renewed if its leaf is about to end or its root is not the CA's."""
        item = self._secrets.get(namespace, name)
        if item is None or not self._listens(namespace):
            return
        data = item.get("data") or {}
        root = base64.b64decode(data.get("root-cert.pem") or "")
        about_to_end = self._wait_problem(base64.b64decode(data.get("cert-chain.pem") or ""))
        if root != self._authority.bundle.root_pem and self._source is not None:
            try:
                await self._sync(self._source)
            except BundleError as error:
                self._out.error(
                    f"failed on syncing root cert in KeyCertBundle ({error}), skip updating secret {namespace}:{name}",
                    _SCOPE,
                )
                return
        if not about_to_end and root == self._authority.bundle.root_pem:
            return
        if not self._labelled(namespace):
            if self._authority.settings.rules.version < (1, 4, 0):
                # Meant to delete the Secret; the prefix is doubled, so another one is deleted, which is not there.
                await self._delete(namespace, name)
            return
        shown = f"{namespace}/{PREFIX}{name}"  # the prefix is doubled, as there
        if about_to_end:
            self._out.info(f"Refreshing about to expire secret {shown}: {about_to_end}", _SCOPE)
        else:
            self._out.info(f"Refreshing secret {shown} (outdated root cert)", _SCOPE)
        body = copy.deepcopy(item)
        account = (item["metadata"].get("annotations") or {}).get(ACCOUNT_ANNOTATION, "")
        body["data"] = data | await self._data(namespace, account)
        try:
            written = await self._client.replace(f"/api/v1/namespaces/{namespace}/secrets/{name}", body)
        except ApiError as error:
            self._out.error(f"Failed to refresh secret {shown} (error: {error.message})", _SCOPE)
            return
        self._secrets.observe(written)
        self._out.info(f"Secret {shown} refreshed successfully.", _SCOPE)

    async def _sync(self, source: SelfSigned) -> None:
        """Compare the memory with istio-ca-secret, at most once in a while, and take over what is there."""
        now = self._clock()
        if self._synced_at is not None and now - self._synced_at < self._options.sync_pause:
            return
        cert_pem, key_pem = ca_pair(await self._read(source))
        if cert_pem == self._authority.bundle.cert_pem:
            self._out.info(
                "CA cert in KeyCertBundle matches CA cert in istio-ca-secret. "
                "Skip reloading root cert into KeyCertBundle",
                _SCOPE,
            )
        else:
            self._out.warn(
                "CA cert in KeyCertBundle does not match CA cert in istio-ca-secret. "
                "Start to reload root cert into KeyCertBundle",
                _SCOPE,
            )
            try:
                self._authority.replace(source.bundle(cert_pem, key_pem))
            except BundleError as error:
                raise BundleError(f"failed to reload root cert into KeyCertBundle ({error})") from error
            self._out.info("Successfully reloaded root cert into KeyCertBundle.", _SCOPE)
        self._synced_at = now

    async def _read(self, source: SelfSigned) -> JSON:
        """The CA's Secret, tried for five seconds; raises BundleError in Citadel's words."""
        where = f"{self._options.storage}:{source.secret_name}"
        for attempt in range(_LOADS):
            try:
                return await source.read()
            except ApiError as error:
                if self._authority.settings.rules.version >= (1, 4, 0):
                    self._out.error(f"Failed on loading CA secret {where}.", source.scopes.controller)
                if attempt + 1 == _LOADS:
                    self._out.error(f"Timeout on loading CA secret {where}.", source.scopes.controller)
                    raise BundleError(f"fail to load CA secret {where} (error: {error.message})") from error
            await asyncio.sleep(self._options.resync.total_seconds() * _LOAD_PAUSE)
        raise AssertionError("unreachable")

    def _wait_problem(self, chain_pem: bytes) -> str:
        """Why the leaf is to be renewed now; "" if it is not."""
        try:
            leaf = bundles.first_certificate(chain_pem)
        except BundleError as error:
            return str(error)
        begin, end, now = leaf.not_valid_before_utc, leaf.not_valid_after_utc, self._clock()
        if now > end:
            return f"certificate already expired at {go_time(end)}, but now is {go_now(now)}"
        percent, least = int(self._options.grace * 100), self._options.min_grace
        grace = (end - begin) * percent / 100
        if grace < least:
            if self._authority.settings.rules.version >= (1, 4, 0):
                # The share is a whole number divided by a whole number there, so 0 unless it is 100.
                shown = format_duration((end - begin).total_seconds()), f"{float(percent // 100):.6f}"
                text = f"gracePeriod ({shown[0]} * {shown[1]}) = {format_duration(grace.total_seconds())}"
                limit = format_duration(least.total_seconds())
                self._out.warn(f"{text} is less than minGracePeriod {limit}. Apply minGracePeriod.")
            grace = least
        return "got a certificate that should be renewed now" if end - now - grace < timedelta() else ""

    async def _data(self, namespace: str, account: str) -> dict[str, str]:
        """A new key and leaf, and the root, encoded for a Secret."""
        identity = f"spiffe://{self._options.trust_domain}/ns/{namespace}/sa/{account}"
        names = self._options.dns_names.get(f"{account}.{namespace}", ())
        key = await asyncio.to_thread(leaves.new_key)
        leaf = leaves.leaf(
            self._authority.bundle,
            key.public_key(),
            [x509.UniformResourceIdentifier(identity), *map(x509.DNSName, names)],
            self._options.leaf_ttl,
            now=self._clock(),
            skew=timedelta(),
        )
        values = {
            "cert-chain.pem": leaves.pem(leaf) + self._authority.bundle.chain_pem,
            "key.pem": leaves.key_pem(key),
            "root-cert.pem": self._authority.bundle.root_pem,
        }
        return {name: base64.b64encode(value).decode() for name, value in values.items()}
