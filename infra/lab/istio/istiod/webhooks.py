"""The caBundle of istiod's own webhook configurations: all with the label istio.io/rev of this istiod's revision."""

from __future__ import annotations

import asyncio
import base64
import copy
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer
from infra.lab.controllers.framework import Controller

if TYPE_CHECKING:
    from infra.lab.client import Key, KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.metrics import Metrics

JSON = dict[str, Any]
REVISION_LABEL = "istio.io/rev"
INJECTOR = "sidecar-injector.istio.io"
_API = "/apis/admissionregistration.k8s.io/v1"
MUTATING = f"{_API}/mutatingwebhookconfigurations"
VALIDATING = f"{_API}/validatingwebhookconfigurations"
VALIDATION_LAG = 2 / 60
"""Up to 1.19 the validating configuration follows two seconds after a new root: as a part of the 60 s poll."""


class WebhookPatcher:
    """Keeps both kinds as they should be; every replica does, without a leader."""

    def __init__(self, authority: Authority, client: KubeClient, metrics: Metrics, out: Log) -> None:
        self._authority = authority
        self._settings = authority.settings
        self._client = client
        self._metrics = metrics
        self._out = out
        self._validates = False
        self._lag = 0.0
        if self._settings.rules.version < (1, 20, 0):
            self._lag = self._settings.poll.total_seconds() * VALIDATION_LAG

    async def run(self) -> None:
        """Watch and patch until cancelled."""
        selector = f"{REVISION_LABEL}={self._settings.revision}"
        mutating = Informer(self._client, MUTATING, labelSelector=selector)
        validating = Informer(self._client, VALIDATING, labelSelector=selector)
        patcher = Controller("webhook patcher", lambda key: self._mutating(mutating, key), workers=1)
        validation = Controller("validation", lambda key: self._validating(validating, key), workers=1)

        def renewed() -> None:
            for key in mutating.objects:
                patcher.add(key)
            for key in validating.objects:
                validation.add_after(key, self._lag)

        try:
            await asyncio.gather(mutating.synced(), validating.synced())
            mutating.on_change(lambda _, __, item: patcher.add(("", item["metadata"]["name"])))
            validating.on_change(lambda _, __, item: validation.add(("", item["metadata"]["name"])))
            self._authority.on_served(renewed)
            await asyncio.Event().wait()
        finally:
            self._authority.forget_served(renewed)
            await asyncio.gather(patcher.stop(), validation.stop(), mutating.stop(), validating.stop())

    def _bundle(self) -> str | None:
        served = self._authority.served
        return None if served is None else base64.b64encode(served.roots).decode()

    async def _mutating(self, informer: Informer, key: Key) -> None:
        known, bundle = informer.get(*key), self._bundle()
        if known is None or bundle is None:
            return
        item = copy.deepcopy(known)
        mine = [hook for hook in item.get("webhooks") or [] if str(hook["name"]).endswith(INJECTOR)]
        if not mine:
            return
        for hook in mine:
            hook["clientConfig"]["caBundle"] = bundle
        old = self._settings.rules.version < (1, 15, 0)
        changed = item != known
        if changed or old:
            name = key[1] if self._settings.rules.version < (1, 20, 0) else INJECTOR
            self._metrics.count_webhook_patch(name)
        if not changed:
            return
        try:
            informer.observe(await self._client.replace(f"{MUTATING}/{key[1]}", item))
        except ApiError as error:
            self._out.error(f"patching webhook {key[1]} failed: {error.message}")
            raise

    async def _validating(self, informer: Informer, key: Key) -> None:
        known, bundle = informer.get(*key), self._bundle()
        if known is None or bundle is None:
            return
        item = copy.deepcopy(known)
        name, scope = key[1], "validationController"
        if not self._validates:
            self._validates = True
            self._out.info("Endpoint successfully rejected invalid config. Switching to fail-close.", scope)
        for hook in item.get("webhooks") or []:
            hook["clientConfig"]["caBundle"] = bundle
            hook["failurePolicy"] = "Fail"
        if item == known:
            self._tell_unchanged(name, known)
            return
        written = await self._client.replace(f"{VALIDATING}/{name}", item)
        version = written["metadata"]["resourceVersion"]
        if self._settings.rules.version < (1, 20, 0):
            text = f"(failurePolicy=Fail,resourceVersion={version})"
            self._out.info(f"Successfully updated validatingwebhookconfiguration {name} {text}", scope)
        else:
            self._out.info(f"successfully updated\tname={name} resource version={version}", scope)

    def _tell_unchanged(self, name: str, item: JSON) -> None:
        """What needed no change is told up to 1.19 only; later it is a debug line."""
        if self._settings.rules.version < (1, 20, 0):
            version = item["metadata"]["resourceVersion"]
            text = f"(failurePolicy=Fail, resourceVersion={version})"
            self._out.info(
                f"validatingwebhookconfiguration {name} {text} is up-to-date. No change required.",
                "validationController",
            )
