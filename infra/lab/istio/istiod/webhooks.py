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


FAST_WRITES = 5
"""So many writes of one configuration come at once; more within a minute are one a minute. Two istiods with different
roots would otherwise write against each other as fast as they can."""


class _Pace:
    """When a configuration may be written again; `minute` in seconds of the lab."""

    def __init__(self, minute: float) -> None:
        self._minute = minute
        self._written: dict[Key, list[float]] = {}

    def pause(self, key: Key) -> float:
        """Seconds to wait before the next write, 0 for none."""
        now = asyncio.get_running_loop().time()
        recent = self._written[key] = [t for t in self._written.get(key, []) if now - t < self._minute]
        return 0.0 if len(recent) < FAST_WRITES else recent[-1] + self._minute - now

    def wrote(self, key: Key) -> None:
        """A write has just been tried."""
        self._written.setdefault(key, []).append(asyncio.get_running_loop().time())


class WebhookPatcher:
    """Keeps both kinds as they should be; every replica does, without a leader."""

    def __init__(self, authority: Authority, client: KubeClient, metrics: Metrics, out: Log) -> None:
        self._authority = authority
        self._settings = authority.settings
        self._client = client
        self._metrics = metrics
        self._out = out
        self._validates = False
        minute = self._settings.poll.total_seconds()
        self._mutating_pace, self._validating_pace = _Pace(minute), _Pace(minute)
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

    async def _mutating(self, informer: Informer, key: Key) -> float | None:
        """Patch one; the seconds after which it is to be looked at again, if it may not be written now."""
        known, bundle = informer.get(*key), self._bundle()
        if known is None or bundle is None:
            return None
        item = copy.deepcopy(known)
        mine = [hook for hook in item.get("webhooks") or [] if str(hook["name"]).endswith(INJECTOR)]
        if not mine:
            return None
        for hook in mine:
            hook["clientConfig"]["caBundle"] = bundle
        old = self._settings.rules.version < (1, 15, 0)
        changed = item != known
        if changed and (pause := self._mutating_pace.pause(key)):
            return pause
        if changed or old:
            name = key[1] if self._settings.rules.version < (1, 20, 0) else INJECTOR
            self._metrics.count_webhook_patch(name)
        if not changed:
            return None
        self._mutating_pace.wrote(key)
        try:
            informer.observe(await self._client.replace(f"{MUTATING}/{key[1]}", item))
        except ApiError as error:
            self._out.error(f"patching webhook {key[1]} failed: {error.message}")
            raise
        return None

    async def _validating(self, informer: Informer, key: Key) -> float | None:
        """As `_mutating`; the failure policy becomes Fail too."""
        known, bundle = informer.get(*key), self._bundle()
        if known is None or bundle is None:
            return None
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
            return None
        if pause := self._validating_pace.pause(key):
            return pause
        self._validating_pace.wrote(key)
        written = await self._client.replace(f"{VALIDATING}/{name}", item)
        version = written["metadata"]["resourceVersion"]
        if self._settings.rules.version < (1, 20, 0):
            text = f"(failurePolicy=Fail,resourceVersion={version})"
            self._out.info(f"Successfully updated validatingwebhookconfiguration {name} {text}", scope)
        else:
            self._out.info(f"successfully updated\tname={name} resource version={version}", scope)
        return None

    def _tell_unchanged(self, name: str, item: JSON) -> None:
        """What needed no change is told up to 1.19 only; later it is a debug line."""
        if self._settings.rules.version < (1, 20, 0):
            version = item["metadata"]["resourceVersion"]
            text = f"(failurePolicy=Fail, resourceVersion={version})"
            self._out.info(
                f"validatingwebhookconfiguration {name} {text} is up-to-date. No change required.",
                "validationController",
            )
