"""The memory store: versions, history, lists of the past."""

from __future__ import annotations

import asyncio

import pytest

from infra.lab.apiserver.store import ConflictError, Store, TooOldError


def put(store: Store, name: str, namespace: str = "n", value: int = 0) -> int:
    return store.create("things", (namespace, name), {"metadata": {"name": name}, "value": value}).rv


def names(objects: list) -> list[str]:
    return [stored.key[1] for stored in objects]


def test_every_write_takes_the_next_version_whatever_the_resource() -> None:
    store = Store()
    first = put(store, "a")
    second = store.create("others", ("", "x"), {"metadata": {"name": "x"}}).rv
    third = store.delete("things", ("n", "a"), first).rv
    assert (second, third) == (first + 1, first + 2)


def test_a_write_on_a_version_that_is_no_longer_current_is_refused_and_changes_nothing() -> None:
    store = Store()
    first = put(store, "a")
    store.update("things", ("n", "a"), {"metadata": {"name": "a"}, "value": 1}, first)
    with pytest.raises(ConflictError):
        store.update("things", ("n", "a"), {"metadata": {"name": "a"}, "value": 2}, first)
    with pytest.raises(ConflictError):
        store.delete("things", ("n", "a"), first)
    stored = store.get("things", "n", "a")
    assert stored is not None
    assert stored.obj["value"] == 1


def test_creating_a_taken_name_is_refused() -> None:
    store = Store()
    put(store, "a")
    with pytest.raises(ConflictError):
        put(store, "a")


def test_a_list_of_the_past_shows_what_was_there_then() -> None:
    store = Store()
    put(store, "a")
    at = put(store, "b")
    store.update("things", ("n", "b"), {"metadata": {"name": "b"}, "value": 9}, at)
    put(store, "c")
    stored = store.get("things", "n", "a")
    assert stored is not None
    store.delete("things", ("n", "a"), stored.rv)
    assert names(store.objects("things", "n")) == ["b", "c"]
    past = store.objects_at("things", "n", at)
    assert [(s.key[1], s.obj["value"]) for s in past] == [("a", 0), ("b", 0)]


def test_a_namespaced_list_holds_only_that_namespace_in_name_order() -> None:
    store = Store()
    for name, namespace in (("z", "n"), ("b", "n"), ("m", "n2"), ("a", "n"), ("a", "m")):
        put(store, name, namespace)
    assert names(store.objects("things", "n")) == ["a", "b", "z"]
    assert [s.key for s in store.objects("things")] == sorted(s.key for s in store.objects("things"))


def test_history_beyond_its_bounds_is_forgotten_and_asking_for_it_says_so() -> None:
    store = Store(history_events=3)
    first = put(store, "a")
    for name in "bcdef":
        put(store, name)
    with pytest.raises(TooOldError):
        store.objects_at("things", "n", first)
    with pytest.raises(TooOldError):
        store.subscribe("things", first)
    assert store.subscribe("things", store.rv - 3).events


def test_history_is_also_forgotten_by_age() -> None:
    moment = 0.0
    store = Store(history_seconds=10, clock=lambda: moment)
    first = put(store, "a")
    moment = 20.0
    put(store, "b")
    with pytest.raises(TooOldError):
        store.subscribe("things", first - 1)


def test_compaction_ends_the_past_of_every_resource_even_of_one_never_written() -> None:
    store = Store()
    first = put(store, "a")
    put(store, "b")
    store.compact()
    with pytest.raises(TooOldError):
        store.objects_at("others", "", first)
    assert names(store.objects_at("things", "n", store.rv)) == ["a", "b"]


def test_a_subscription_from_a_version_replays_what_followed_and_then_goes_on_live() -> None:
    async def scenario() -> list[tuple[str, int]]:
        store = Store()
        first = put(store, "a")
        put(store, "b")
        subscription = store.subscribe("things", first)
        third = put(store, "c")
        await asyncio.wait_for(subscription.wake.wait(), 1)
        assert third == first + 2
        return [(event.type, event.rv - first) for event in subscription.events]

    assert asyncio.run(scenario()) == [("ADDED", 1), ("ADDED", 2)]


def test_a_deletion_event_carries_the_last_state_under_the_version_of_the_deletion() -> None:
    store = Store()
    first = put(store, "a", value=7)
    subscription = store.subscribe("things", first)
    store.delete("things", ("n", "a"), first)
    event = subscription.events[0]
    assert event.type == "DELETED"
    assert event.new.obj["value"] == 7
    assert event.new.obj["metadata"]["resourceVersion"] == str(event.rv) == str(first + 1)
