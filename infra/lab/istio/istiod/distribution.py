"""How istiod spreads its roots: ConfigMap istio-ca-root-cert in every namespace, written by the leader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer
from infra.lab.controllers.framework import Controller, selects
from infra.lab.istio.istiod.leader import Election

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from infra.lab.client import Key, KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority

JSON = dict[str, Any]
CONFIG_MAP = "istio-ca-root-cert"
DATA_KEY = "root-cert.pem"
CRL_CONFIG_MAP = "istio-ca-crl"
CRL_KEY = "ca-crl.pem"
LABELS = {"istio.io/config": "true"}
ELECTION = "istio-namespace-controller-election"


class NamespaceController:
    """Keeps the ConfigMap as it should be while this istiod leads.

    What a namespace holds beside the one key is left alone; a namespace that is ending is not written to.
    """

    def __init__(self, authority: Authority, client: KubeClient, out: Log, clock: Callable[[], datetime]) -> None:
        settings = authority.settings
        self._authority = authority
        self._client = client
        self._out = out
        self._ignored = settings.rules.ignored_namespaces
        self._election = Election(client, settings.namespace, ELECTION, settings.pod_name, settings.leader_ttl, clock)

    async def run(self) -> None:
        """Take part in the election, and write while leading; until cancelled."""
        election = asyncio.create_task(self._election.run())
        try:
            while True:
                await self._election.leading.wait()
                self._out.info(
                    f"starting namespace controller for cluster {self._authority.settings.cluster_id}", "kube"
                )
                await self._lead()
        finally:
            election.cancel()
            await asyncio.gather(election, return_exceptions=True)

    async def _lead(self) -> None:
        namespaces = Informer(self._client, "/api/v1/namespaces")
        maps = Informer(self._client, "/api/v1/configmaps", fieldSelector=f"metadata.name={CONFIG_MAP}")
        queue = Controller("namespace controller", lambda key: self._reconcile(maps, namespaces, key), workers=2)

        def everywhere() -> None:
            for _, name in namespaces.objects:
                queue.add(("", name))

        try:
            await asyncio.gather(namespaces.synced(), maps.synced())
            self._authority.on_served(everywhere)
            maps.on_change(lambda _, __, item: queue.add(("", item["metadata"]["namespace"])))
            namespaces.on_change(lambda kind, _, item: None if kind == "DELETED" else queue.add(("", _name(item))))
            await self._election.idle.wait()
        finally:
            self._authority.forget_served(everywhere)
            await queue.stop()
            await asyncio.gather(namespaces.stop(), maps.stop())

    async def _reconcile(self, maps: Informer, namespaces: Informer, key: Key) -> None:
        name = key[1]
        namespace, served = namespaces.get("", name), self._authority.served
        if name in self._ignored or namespace is None or served is None or not self._discovers(namespace):
            return
        if (namespace.get("status") or {}).get("phase") == "Terminating":
            return
        text = served.roots.decode("utf-8", "replace")
        await self._insert(maps.get(name, CONFIG_MAP), name, CONFIG_MAP, DATA_KEY, text)
        if crl := self._authority.bundle.crl_pem.decode("utf-8", "replace"):
            await self._insert(await self._read(name, CRL_CONFIG_MAP), name, CRL_CONFIG_MAP, CRL_KEY, crl)

    def _discovers(self, namespace: JSON) -> bool:
        """Whether a discovery selector selects it; what was written before one stopped to stays as it is."""
        settings, labels = self._authority.settings, namespace["metadata"].get("labels")
        selectors = settings.discovery_selectors if settings.rules.version >= (1, 16, 0) else ()
        return not selectors or any(selects(selector, labels) for selector in selectors)

    async def _insert(self, known: JSON | None, namespace: str, name: str, key: str, text: str) -> None:
        """One key of one ConfigMap (InsertDataToConfigMap); raises ApiError, the queue tries again."""
        collection = f"/api/v1/namespaces/{namespace}/configmaps"
        if known is None:
            metadata = {"name": name, "namespace": namespace, "labels": LABELS}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}}
            try:
                await self._client.create(collection, body)
            except ApiError as error:
                if error.status != 409:  # there already: its event will bring it here again
                    raise
            return
        data: JSON = known.get("data") or {}
        if data.get(key) != text:
            await self._client.replace(f"{collection}/{name}", {**known, "data": {**data, key: text}})

    async def _read(self, namespace: str, name: str) -> JSON | None:
        try:
            return await self._client.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise


def _name(item: JSON) -> str:
    return str(item["metadata"]["name"])
