"""Notifications on a real Prefect server: each arrives at a webhook, with a link to its run."""

from __future__ import annotations

import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from capstan.config import TrustDomain
from deployments.automations import Difference, apply, block_name, diff, wanted
from deployments.notifications import Notifications, Notified, WebhookTarget
from flows.events import EventName, raise_event
from tests.support.webhooks import PROBE, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.flows.conftest import Domain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("flows")]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def notifications(receiver: Receiver) -> Notifications:
    return Notifications(webhook=WebhookTarget(url=SecretStr(receiver.url)), not_recovered_after=timedelta(seconds=10))


def applied(domain: Domain, notifications: Notifications | None, **more: Any) -> tuple[Difference, ...]:
    with domain.prefect.as_client(), get_client(sync_client=True) as client:
        return apply(client, notifications, domain.name, **more)


def await_loaded(domain: Domain, receiver: Receiver) -> None:
    """Return once the server's triggers know the automations: it loads them a moment after they are written."""
    deadline = time.monotonic() + 120
    while not receiver.probes:
        assert time.monotonic() < deadline, "no automation was loaded"
        domain.launch("FAILED", name=PROBE)
        time.sleep(1)


def difference(domain: Domain, notifications: Notifications | None, inventory: str = "") -> tuple[Difference, ...]:
    with domain.prefect.as_client(), get_client(sync_client=True) as client:
        return diff(client, notifications, inventory or domain.name)


@flow(name="linkerd-trust-anchor", persist_result=False)
def tells_everything(domain: TrustDomain) -> None:
    for name in EventName:
        raise_event(name, domain, "2026-11-22", {"message": f'this is "{name}"', "next_command": "look <here> & there"})


def test_every_notification_arrives_with_a_link_to_its_run(domain, receiver, notifications):
    applied(domain, notifications)
    await_loaded(domain, receiver)
    crashed = domain.launch("CRASHED", name="prod-eu: trust (2026-11-22)")
    suspended = domain.launch("PAUSED", "Suspended")
    failed = domain.launch("FAILED")
    with domain.prefect.as_client(), tags("capstan", domain.tag):
        tells_everything(TrustDomain.model_validate(domain.parameter))

    runs = {
        Notified.WAITING_FOR_APPROVAL: suspended,
        Notified.FAILED: failed,
        Notified.NOT_RECOVERED: crashed,
    }
    for event in Notified:
        body = receiver.await_one(event)
        run = body["run_id"]
        assert run == runs.get(event, run)
        assert body["url"] == f"{domain.prefect.ui_url}/runs/flow-run/{run}"
        assert domain.prefect.run(run)["name"] == body["run"]
        assert body["url"] in body["text"]
        assert body["domain"] == domain.name
        if event not in runs:
            assert body["message"] == f'this is "capstan.{event}"'
            assert body["next_command"] == "look <here> & there"
    assert receiver.await_one(Notified.FAILED)["message"] == "set by the test"
    assert receiver.types == {"application/json"}
    assert sorted(body["event"] for body in receiver.received) == sorted(Notified), "each is told once"


def test_a_run_of_another_inventory_is_not_told(domain, receiver, notifications):
    applied(domain, notifications)
    await_loaded(domain, receiver)
    domain.launch("FAILED", tags=["capstan", "inventory:another"])
    domain.launch("FAILED", name="the last")
    assert receiver.await_one(Notified.FAILED)["run"] == "the last"


def test_applying_twice_changes_nothing_the_second_time(domain, notifications):
    assert {item.verb for item in applied(domain, notifications)} == {"create"}
    assert {item.verb for item in applied(domain, notifications)} == {"unchanged"}
    assert len(difference(domain, notifications)) == len(Notified) + 1


def test_a_new_url_is_written_to_the_block_and_shown_nowhere(domain, notifications, monkeypatch):
    applied(domain, notifications)
    monkeypatch.setenv("HOOK", "https://hooks.example.com/another-secret")
    moved = notifications.model_copy(update={"webhook": WebhookTarget(url_from_env="HOOK")})
    changed = [item for item in applied(domain, moved) if item.verb != "unchanged"]
    assert [(item.kind, item.name, set(item.fields)) for item in changed] == [
        ("block", block_name(domain.name), {"url"})
    ]
    assert "secret-path" not in str(changed)
    assert "another-secret" not in str(changed)
    assert {item.verb for item in difference(domain, moved)} == {"unchanged"}


def test_what_is_not_wanted_any_more_is_left_until_pruning_is_asked_for(domain, notifications):
    applied(domain, notifications)
    fewer = notifications.model_copy(update={"events": frozenset({Notified.FAILED})})
    left = {item.name for item in applied(domain, fewer) if item.verb == "remove"}
    assert len(left) == len(Notified) - 1
    assert {item.name for item in applied(domain, fewer, prune=True) if item.verb == "remove"} == left
    assert {item.verb for item in difference(domain, fewer)} == {"unchanged"}
    applied(domain, None, prune=True)
    assert difference(domain, None) == ()


def test_an_edit_in_the_ui_is_a_difference_and_muting_is_not(domain, notifications):
    applied(domain, notifications)
    muted, edited = f"capstan {domain.name}: expiry", f"capstan {domain.name}: failed"
    with domain.prefect.as_client(), get_client(sync_client=True) as client:
        (first,) = client.read_automations_by_name(muted)
        client.pause_automation(first.id)
        (second,) = client.read_automations_by_name(edited)
        (item,) = [item for item in wanted(notifications, domain.name) if item.name == edited]
        as_it_was = item.automation(second.actions[0].block_document_id)
        client.update_automation(second.id, as_it_was.model_copy(update={"description": "edited"}))
    (found,) = [item for item in difference(domain, notifications) if item.verb == "change"]
    assert (found.name, set(found.fields)) == (edited, {"description"})
    assert found.fields["description"][0] == "edited"
    applied(domain, notifications)
    assert {item.verb for item in difference(domain, notifications)} == {"unchanged"}
    with domain.prefect.as_client(), get_client(sync_client=True) as client:
        assert not client.read_automations_by_name(muted)[0].enabled


def test_two_inventories_do_not_see_each_others_automations(domain, notifications):
    applied(domain, notifications)
    other = f"other-{secrets.token_hex(3)}"
    assert {item.verb for item in difference(domain, notifications, other)} == {"create"}
    assert difference(domain, None, other) == ()
