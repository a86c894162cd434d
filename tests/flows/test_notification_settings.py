"""What an inventory may say about notifications."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import SecretStr, ValidationError

from capstan.errors import InvalidInput
from deployments.automations import wanted
from deployments.notifications import Notifications, Notified, WebhookTarget

TARGET = {"url": "https://hooks.example.com/a-secret-path"}


def test_everything_is_told_unless_the_inventory_lists_less():
    assert Notifications.model_validate({"webhook": TARGET}).events == frozenset(Notified)
    some = Notifications.model_validate({"webhook": TARGET, "events": ["failed", "expiry"]})
    assert [item.name for item in wanted(some, "prod")] == ["capstan prod: expiry", "capstan prod: failed"]
    assert wanted(None, "prod") == ()


@pytest.mark.parametrize(
    ("webhook", "reason"),
    [
        ({}, "give one of url and url_from_env"),
        ({**TARGET, "url_from_env": "HOOK"}, "give one of url and url_from_env"),
        ({"url": "ftp://hooks.example.com/a-secret-path"}, "no http or https URL"),
        ({"url": "hooks.example.com/a-secret-path"}, "no http or https URL"),
        ({**TARGET, "colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_webhook_that_cannot_be_used_is_refused_without_showing_its_url(webhook, reason):
    with pytest.raises(ValidationError) as caught:
        WebhookTarget.model_validate(webhook)
    assert reason in str(caught.value)
    assert "a-secret-path" not in str(caught.value)


def test_the_url_comes_from_the_environment_of_whoever_deploys():
    target = WebhookTarget(url_from_env="HOOK")
    assert target.resolved({"HOOK": "https://example.com/x"}).get_secret_value() == "https://example.com/x"
    for environment in ({}, {"HOOK": "a-secret-that-is-no-url"}):
        with pytest.raises(InvalidInput) as caught:
            target.resolved(environment)
        assert "HOOK" in str(caught.value)
        assert "a-secret" not in str(caught.value)


def test_no_automation_and_no_text_of_the_settings_shows_the_url():
    settings = Notifications(webhook=WebhookTarget(url=SecretStr(TARGET["url"])))
    assert "a-secret-path" not in f"{settings!r}{settings.model_dump_json()}{wanted(settings, 'prod')!r}"


def test_only_events_of_runs_of_this_inventory_count():
    for item in wanted(Notifications.model_validate({"webhook": TARGET}), "prod"):
        (first, *_) = item.trigger.match_related
        assert first.root == {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.inventory:prod"}


def test_a_crash_is_told_only_when_nothing_brings_the_run_back_in_time():
    settings = Notifications.model_validate({"webhook": TARGET, "not_recovered_after": "PT20M"})
    (item,) = [item for item in wanted(settings, "prod") if item.name.endswith("not-recovered")]
    assert item.trigger.after == {"prefect.flow-run.Crashed"}
    assert "prefect.flow-run.Recovering" in item.trigger.expect
    assert item.trigger.within == timedelta(minutes=20)
