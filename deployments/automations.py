"""Notifications as Prefect automations: what is wanted, how it differs from what the server has, and making it so.

Each kind of notification is one automation (a trigger on an event, one call of a webhook). The webhook's URL is a
secret and lives in one Webhook block, encrypted in Prefect's database; no automation, log or difference shows it.

Which event is listened to:

- A run that *waits for approval*, has *failed* or was *not recovered* is told by Prefect's own state events. The server
  writes those, so they come also when the flow's process is dead (a run fails by itself when its approval times out).
- A crash alone is not told: the sweep brings the run back within minutes. It is told when that does not happen.
- All else is told by Capstan's own events (`flows.events`), which say more.

Only events with the tag `inventory:NAME` count, so that two inventories on one server keep their notifications apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import AutomationCore, CallWebhook, EventTrigger
from prefect.events.filters import AutomationFilter, AutomationFilterTags
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound

from deployments.entrypoints import ROTATIONS
from deployments.notifications import Notifications, Notified
from flows.errors import prefect_errors
from flows.events import EventName

if TYPE_CHECKING:
    from prefect.events.schemas.automations import Automation

_BLOCK_TYPE = "webhook"
_PAGE = 200  # Prefect's own limit of one answer

Verb = Literal["create", "change", "unchanged", "remove"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One automation to be: everything but the id of its webhook block."""

    name: str
    description: str
    tags: tuple[str, ...]
    trigger: EventTrigger
    payload: str

    def automation(self, block: UUID) -> AutomationCore:
        """For Prefect, calling this webhook block."""
        return AutomationCore(
            name=self.name,
            description=self.description,
            enabled=True,
            tags=list(self.tags),
            trigger=self.trigger,
            actions=[CallWebhook(block_document_id=block, payload=self.payload)],
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One object of ours on the server against what is wanted.

    Attributes:
        kind: `automation` or `block`.
        fields: What changes: field -> (now, wanted), as a person reads it; a secret shows as `(secret)`.
    """

    kind: Literal["automation", "block"]
    name: str
    verb: Verb
    fields: Mapping[str, tuple[str, str]]


def inventory_tags(inventory: str) -> tuple[str, str]:
    """What marks an object as one of ours, and of this inventory."""
    return ("capstan", f"inventory:{inventory}")


def block_name(inventory: str) -> str:
    """Name of the webhook block of an inventory."""
    return f"capstan-{inventory}"


def wanted(notifications: Notifications | None, inventory: str) -> tuple[Wanted, ...]:
    """The automations of an inventory, by name."""
    if notifications is None:
        return ()
    found = [_wanted(event, notifications, inventory) for event in notifications.events]
    return tuple(sorted(found, key=lambda item: item.name))


def diff(
    client: SyncPrefectClient,
    notifications: Notifications | None,
    inventory: str,
    *,
    environment: Mapping[str, str] | None = None,
) -> tuple[Difference, ...]:
    """What `apply` would do, block first; nothing is written.

    An automation that was switched off in the UI is not a difference: muting is an operator's to do.

    Args:
        environment: Where the webhook's URL is looked up if the inventory names a variable.

    Raises:
        InvalidInput: The webhook's URL is not known.
        Unreachable: The server does not answer.
    """
    with prefect_errors("compare the notifications with Prefect's automations"):
        differences = []
        block_id = _block_id(client, inventory)
        if notifications is not None:
            differences.append(_block_difference(client, block_id, notifications, inventory, environment))
        elif block_id is not None:
            differences.append(Difference("block", block_name(inventory), "remove", {}))
        present = {automation.name: automation for automation in _ours(client, inventory)}
        for item in wanted(notifications, inventory):
            found = present.pop(item.name, None)
            fields = {} if found is None else _fields(found, item, block_id)
            verb: Verb = "create" if found is None else "change" if fields else "unchanged"
            differences.append(Difference("automation", item.name, verb, fields))
        differences.extend(Difference("automation", name, "remove", {}) for name in sorted(present))
        return tuple(differences)


def apply(
    client: SyncPrefectClient,
    notifications: Notifications | None,
    inventory: str,
    *,
    prune: bool = False,
    environment: Mapping[str, str] | None = None,
) -> tuple[Difference, ...]:
    """Make it so; a second call finds nothing to do.

    Args:
        prune: Remove what is no longer wanted; without it, it is left and reported.

    Returns:
        What differed before, `remove` included whether or not it was done.

    Raises:
        As `diff`.
    """
    differences = diff(client, notifications, inventory, environment=environment)
    with prefect_errors("write the notifications as Prefect's automations"):
        verbs = {(difference.kind, difference.name): difference.verb for difference in differences}
        present = {automation.name: automation for automation in _ours(client, inventory)}
        block_id = _block_id(client, inventory)
        if notifications is not None:
            if verbs["block", block_name(inventory)] != "unchanged" or block_id is None:
                block_id = _save(_block(notifications, environment), block_name(inventory))
            for item in wanted(notifications, inventory):
                verb = verbs["automation", item.name]
                if verb == "create":
                    client.create_automation(item.automation(block_id))
                elif verb == "change":
                    before = present[item.name]
                    after = item.automation(block_id).model_copy(update={"enabled": before.enabled})
                    client.update_automation(before.id, after)
        if prune:
            for (kind, name), verb in verbs.items():
                if verb == "remove" and kind == "automation":
                    client.delete_automation(present[name].id)
            if verbs.get(("block", block_name(inventory))) == "remove" and block_id is not None:
                client.delete_block_document(block_id)
    return differences


def _ours(client: SyncPrefectClient, inventory: str) -> list[Automation]:
    mine = AutomationFilter(tags=AutomationFilterTags(all_=list(inventory_tags(inventory))))
    found: list[Automation] = []
    while page := client.read_automations(automations=mine, limit=_PAGE, offset=len(found)):
        found.extend(page)
    return found


def _fields(present: Automation, item: Wanted, block: UUID | None) -> dict[str, tuple[str, str]]:
    """Where an automation on the server differs, in words."""
    target = item.automation(block or UUID(int=0)).model_dump(mode="json")
    found = present.model_dump(mode="json")
    return {
        name: (_shown(found.get(name)), _shown(target[name]))
        for name in ("description", "tags", "trigger", "actions")
        if _plain(found.get(name)) != _plain(target[name])
    }


def _plain(value: Any) -> Any:
    """Sets come in any order; ids of actions and triggers are the server's own business."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "id"}
    if isinstance(value, list):
        items = [_plain(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value


def _shown(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) <= 80 else text[:79] + "…"


# --- the block: the only place that knows the URL ---------------------------------------------------------------------


def _block(notifications: Notifications, environment: Mapping[str, str] | None) -> Webhook:
    target = notifications.webhook
    return Webhook(
        method="POST",
        url=target.resolved(environment),
        headers={"content-type": "application/json"},
        allow_private_urls=target.allow_private_urls,
        verify=target.verify,
    )


def _block_id(client: SyncPrefectClient, inventory: str) -> UUID | None:
    try:
        return client.read_block_document_by_name(block_name(inventory), _BLOCK_TYPE, include_secrets=False).id
    except ObjectNotFound:
        return None


def _block_difference(
    client: SyncPrefectClient,
    block_id: UUID | None,
    notifications: Notifications,
    inventory: str,
    environment: Mapping[str, str] | None,
) -> Difference:
    block = _block(notifications, environment)
    name = block_name(inventory)
    if block_id is None:
        return Difference("block", name, "create", {})
    present = client.read_block_document(block_id, include_secrets=True).data
    target = {
        "method": block.method,
        "url": block.url.get_secret_value(),
        "headers": block.headers.get_secret_value(),
        "allow_private_urls": block.allow_private_urls,
        "verify": block.verify,
    }
    fields = {
        key: ("(secret)", "(secret)") if key in ("url", "headers") else (str(present.get(key)), str(value))
        for key, value in target.items()
        if present.get(key) != value
    }
    return Difference("block", name, "change" if fields else "unchanged", fields)


def _save(block: Webhook, name: str) -> UUID:
    saved = block.save(name, overwrite=True)
    assert isinstance(saved, UUID)  # noqa: S101  # a coroutine only where a loop runs
    return saved


# --- what each notification says --------------------------------------------------------------------------------------

# Jinja, rendered by the Prefect server. `flow_run` is the run of the event as it was then, None if it cannot be read.
_PRELUDE = """\
{%- set domain = flow_run.parameters.domain.name | default(event.payload.domain) | default("", true) -%}
{%- set url = flow_run | ui_url if flow_run else event.resource | ui_resource_events_url -%}
{%- set run = flow_run.name | default("", true) -%}
{%- set state = event.resource["prefect.state-message"] | default("", true) -%}
{%- set message = event.payload.message | default(state, true) | default("", true) -%}
{%- set next = event.payload.next_command | default("", true) -%}
"""
_BODY = """\
{"text": {{ text | tojson }}, "event": EVENT, "domain": {{ domain | tojson }}, "run": {{ run | tojson }}, \
"run_id": {{ (flow_run.id | string if flow_run else "") | tojson }}, "url": {{ (url or "") | tojson }}, \
"message": {{ message | tojson }}, "next_command": {{ next | tojson }}, \
"occurred": {{ event.occurred | string | tojson }}}
"""

_LEAVES_CRASHED = (
    "Recovering", "Scheduled", "AwaitingRetry", "Resuming", "Pending", "Submitting", "Running", "Retrying", "Waiting",
    "Suspended", "Paused", "Late", "Cancelling", "Cancelled", "Completed", "Failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Told:
    """One kind of notification: the events that tell it, and its text as a Jinja expression."""

    events: tuple[str, ...]
    description: str
    text: str


_TOLD: dict[Notified, _Told] = {
    Notified.WAITING_FOR_APPROVAL: _Told(
        ("prefect.flow-run.Suspended",),
        "A run is suspended until somebody decides.",
        'domain ~ ": " ~ message ~ " (" ~ run ~ "). Read and decide: " ~ url ~ " or: capstan approve " ~ flow_run.id',
    ),
    Notified.FAILED: _Told(
        ("prefect.flow-run.Failed",),
        "A run has ended with an error, whether or not its process lived to say so.",
        'domain ~ ": failed: " ~ run ~ ". " ~ message ~ " " ~ url',
    ),
    Notified.NOT_RECOVERED: _Told(
        ("prefect.flow-run.Crashed",),
        "A run has crashed and nothing has brought it back: sweep or workers do not run.",
        'domain ~ ": " ~ run ~ " has crashed and was not brought back. Look whether the sweep'
        ' and the workers run. " ~ url',
    ),
    Notified.FINISHED: _Told(
        (EventName.FINISHED,),
        "A rotation is done: the old root is refused everywhere.",
        'domain ~ ": " ~ (message or "the rotation is done") ~ " " ~ url',
    ),
    Notified.ROLLED_BACK: _Told(
        (EventName.ROLLED_BACK,),
        "A domain is back on its old roots.",
        'domain ~ ": " ~ (message or "back on the old roots") ~ " " ~ url',
    ),
    Notified.STRAGGLER: _Told(
        (EventName.STRAGGLER,),
        "A wait has passed its bound, and somebody has not arrived.",
        'domain ~ ": " ~ (message or "somebody has not arrived in time") ~ " " ~ url',
    ),
    Notified.EXPIRY: _Told(
        (EventName.EXPIRY,),
        "A certificate ends soon, or a check of the mesh fails.",
        'domain ~ ": " ~ message ~ " " ~ url',
    ),
    Notified.BUDGET_EXHAUSTED: _Told(
        (EventName.BUDGET_EXHAUSTED,),
        "A run died again and again, and the sweep has left it dead.",
        'message ~ " Next: " ~ next ~ " " ~ url',
    ),
}


def _wanted(event: Notified, notifications: Notifications, inventory: str) -> Wanted:
    told = _TOLD[event]
    payload = _PRELUDE + "{%- set text = " + told.text + " -%}\n" + _BODY.replace("EVENT", f'"{event.value}"')
    return Wanted(
        name=f"capstan {inventory}: {event.value}",
        description=told.description,
        tags=inventory_tags(inventory),
        trigger=_trigger(event, told, notifications, inventory),
        payload=payload,
    )


def _trigger(event: Notified, told: _Told, notifications: Notifications, inventory: str) -> EventTrigger:
    mine: dict[str, str | list[str]] = {
        "prefect.resource.role": "tag",
        "prefect.resource.id": f"prefect.tag.inventory:{inventory}",
    }
    if event is not Notified.NOT_RECOVERED:
        return EventTrigger(
            match={},
            match_related=[mine],
            after=set(),
            expect=set(told.events),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        )
    # The sweep brings back rotations; another sweep or radar comes by itself.
    rotation: dict[str, str | list[str]] = {"prefect.resource.role": "flow", "prefect.resource.name": list(ROTATIONS)}
    return EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=[mine, rotation],
        after=set(told.events),
        expect={f"prefect.flow-run.{name}" for name in _LEAVES_CRASHED},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=notifications.not_recovered_after,
    )
