"""What every namespace gets: its default ServiceAccount, the cluster's CA bundle, and tokens for Secrets that ask for
one.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers.framework import Context, Controller, object_path, path_of

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
NAMESPACES = "/api/v1/namespaces"
ACCOUNTS = "/api/v1/serviceaccounts"
CONFIG_MAPS = "/api/v1/configmaps"
SECRETS = "/api/v1/secrets"
ROOT_CA = "kube-root-ca.crt"
DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)
TOKEN_SECRET = "kubernetes.io/service-account-token"  # noqa: S105 - a type of Secret, no password
ACCOUNT_NAME = "kubernetes.io/service-account.name"
ACCOUNT_UID = "kubernetes.io/service-account.uid"
TOKEN_SECONDS = 10 * 365 * 24 * 3600


class DefaultAccounts:
    """ServiceAccount `default` in every active namespace."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.namespaces = context.informer(NAMESPACES)
        self.accounts = context.informer(ACCOUNTS)
        self.controller = Controller("default ServiceAccount", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.namespaces.on_change(lambda _, __, new: self.controller.add(("", new["metadata"]["name"])))
        self.accounts.on_change(lambda _, __, new: self.controller.add(("", new["metadata"]["namespace"])))
        return self.controller

    async def reconcile(self, key: Key) -> None:
        """Create it if it is missing."""
        await self.accounts.synced()
        namespace = self.namespaces.objects.get(key)
        if namespace is None or not _active(namespace) or self.accounts.get(key[1], "default") is not None:
            return
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        await _create(self.context, ACCOUNTS, key[1], body)


class RootCaPublisher:
    """ConfigMap kube-root-ca.crt in every active namespace, restored whenever it is changed or deleted."""

    def __init__(self, context: Context, ca_pem: str) -> None:
        self.context = context
        self.ca_pem = ca_pem
        self.namespaces = context.informer(NAMESPACES)
        self.config_maps = context.informer(CONFIG_MAPS)
        self.controller = Controller("root CA", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.namespaces.on_change(lambda _, __, new: self.controller.add(("", new["metadata"]["name"])))
        self.config_maps.on_change(self._changed)
        return self.controller

    def publish(self, ca_pem: str) -> None:
        """Publish another bundle from now on, as a controller-manager started with another --root-ca-file does."""
        self.ca_pem = ca_pem
        for key in self.namespaces.objects:
            self.controller.add(key)

    def _changed(self, _: str, __: JSON | None, item: JSON) -> None:
        if item["metadata"]["name"] == ROOT_CA:
            self.controller.add(("", item["metadata"]["namespace"]))

    async def reconcile(self, key: Key) -> None:
        """Create it, or put the right contents back."""
        await self.config_maps.synced()
        namespace = self.namespaces.objects.get(key)
        if namespace is None or not _active(namespace):
            return
        wanted = {"ca.crt": self.ca_pem}
        known = self.config_maps.get(key[1], ROOT_CA)
        if known is None:
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": ROOT_CA, "annotations": {"kubernetes.io/description": DESCRIPTION}},
                "data": wanted,
            }
            await _create(self.context, CONFIG_MAPS, key[1], body)
        elif known.get("data") != wanted:
            answer = await self.context.client.replace(path_of(CONFIG_MAPS, known), {**known, "data": wanted})
            self.config_maps.observe(answer)


class TokenSecrets:
    """Fills Secrets of type kubernetes.io/service-account-token, restores them, and deletes those whose account is
    gone.

    A real controller-manager signs these tokens itself, without expiry. This one asks the API server for a token
    bound to the Secret, valid as long as the server grants, so it needs no signing key and works against any server.
    """

    def __init__(self, context: Context, ca_pem: str) -> None:
        self.context = context
        self.ca_pem = ca_pem
        self.accounts = context.informer(ACCOUNTS)
        self.secrets = context.informer(SECRETS)
        self.controller = Controller("token Secrets", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.secrets.on_change(self._secret_changed)
        self.accounts.on_change(self._account_changed)
        return self.controller

    def _secret_changed(self, _: str, __: JSON | None, item: JSON) -> None:
        if item.get("type") == TOKEN_SECRET:
            self.controller.add(key_of(item))

    def _account_changed(self, _: str, __: JSON | None, account: JSON) -> None:
        for key, secret in self.secrets.objects.items():
            if secret.get("type") == TOKEN_SECRET and key[0] == account["metadata"]["namespace"]:
                self.controller.add(key)

    async def reconcile(self, key: Key) -> None:
        """Make the Secret complete."""
        await self.accounts.synced()
        secret = self.secrets.objects.get(key)
        if secret is None or secret.get("type") != TOKEN_SECRET or "deletionTimestamp" in secret["metadata"]:
            return
        notes = secret["metadata"].get("annotations") or {}
        account = self.accounts.get(key[0], notes.get(ACCOUNT_NAME, ""))
        if account is None or notes.get(ACCOUNT_UID) not in (None, account["metadata"]["uid"]):
            if notes.get(ACCOUNT_UID) is not None:  # its account was deleted, perhaps made anew: the token is dead
                await _ignore_missing(self.context.client.delete(path_of(SECRETS, secret)))
            return
        data = dict(secret.get("data") or {})
        wanted = {"ca.crt": _encode(self.ca_pem), "namespace": _encode(key[0])}
        if "token" not in data:
            wanted["token"] = _encode(await self._token(key, account, secret))
        if all(data.get(k) == v for k, v in wanted.items()) and ACCOUNT_UID in notes:
            return
        metadata = {**secret["metadata"], "annotations": {**notes, ACCOUNT_UID: account["metadata"]["uid"]}}
        body = {**secret, "metadata": metadata, "data": {**data, **wanted}}
        self.secrets.observe(await self.context.client.replace(path_of(SECRETS, secret), body))

    async def _token(self, key: Key, account: JSON, secret: JSON) -> str:
        metadata = secret["metadata"]
        bound = {"kind": "Secret", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound},
        }
        path = f"{object_path(ACCOUNTS, key[0], account['metadata']['name'])}/token"
        return str((await self.context.client.create(path, body))["status"]["token"])


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _active(namespace: JSON) -> bool:
    return (namespace.get("status") or {}).get("phase") != "Terminating"


async def _create(context: Context, collection: str, namespace: str, body: JSON) -> None:
    try:
        context.informer(collection).observe(await context.client.create(object_path(collection, namespace), body))
    except ApiError as error:
        # Already there, or the namespace is on its way out: both are as they should be.
        if error.status not in (403, 404, 409):
            raise


async def _ignore_missing(request: Any) -> None:
    try:
        await request
    except ApiError as error:
        if error.status != 404:
            raise
