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
"""From 1.27 on in every namespace too, empty without a ca-crl.pem."""
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
        names = [CONFIG_MAP, CRL_CONFIG_MAP] if self._authority.settings.rules.crl else [CONFIG_MAP]
        maps = {
            name: Informer(self._client, "/api/v1/configmaps", fieldSelector=f"metadata.name={name}") for name in names
        }
        queue = Controller("namespace controller", lambda key: self._reconcile(maps, namespaces, key), workers=2)

        def everywhere() -> None:
            for _, name in namespaces.objects:
                queue.add(("", name))

        try:
            await asyncio.gather(namespaces.synced(), *(informer.synced() for informer in maps.values()))
            self._authority.on_served(everywhere)
            for informer in maps.values():
                informer.on_change(lambda _, __, item: queue.add(("", item["metadata"]["namespace"])))
            namespaces.on_change(lambda kind, _, item: None if kind == "DELETED" else queue.add(("", _name(item))))
            await self._election.idle.wait()
        finally:
            self._authority.forget_served(everywhere)
            await queue.stop()
            await asyncio.gather(namespaces.stop(), *(informer.stop() for informer in maps.values()))

    async def _reconcile(self, maps: dict[str, Informer], namespaces: Informer, key: Key) -> None:
        name = key[1]
        namespace, served = namespaces.get("", name), self._authority.served
        if name in self._ignored or namespace is None or served is None or not self._discovers(namespace):
            return
        if (namespace.get("status") or {}).get("phase") == "Terminating":
            return
        wanted = {CONFIG_MAP: (DATA_KEY, served.roots), CRL_CONFIG_MAP: (CRL_KEY, self._authority.bundle.crl_pem)}
        for config_map, informer in maps.items():
            key_name, text = wanted[config_map]
            known = informer.get(name, config_map)
            await self._insert(known, name, config_map, key_name, text.decode("utf-8", "replace"))

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
                if error.status not in (404, 409):  # the namespace has gone; or it is there: its event comes here
                    raise
            return
        data: JSON = known.get("data") or {}
        if data.get(key) != text:
            await self._client.replace(f"{collection}/{name}", {**known, "data": {**data, key: text}})


def _name(item: JSON) -> str:
    return str(item["metadata"]["name"])
