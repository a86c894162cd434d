"""The client against a Kubernetes API, faults included."""

from __future__ import annotations

import threading
import time

import pytest

from capstan.cluster.client import Cluster
from capstan.cluster.follow import follow
from capstan.cluster.resources import CONFIG_MAPS, NAMESPACES, PODS
from capstan.cluster.values import PatchKind
from capstan.errors import Conflict, Denied, InvalidInput, NotFound, ServerFault, Throttled, Unreachable


def config_map(namespace, name="settings", **data):
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "t"}},
        "data": data,
    }


def test_an_object_is_created_read_replaced_patched_and_deleted(cluster, namespace):
    created = cluster.create(CONFIG_MAPS, config_map(namespace, a="1"))
    assert created["metadata"]["resourceVersion"]
    created["data"] = {"a": "2"}
    replaced = cluster.replace(CONFIG_MAPS, created)
    patched = cluster.patch(CONFIG_MAPS, "settings", {"data": {"b": "3"}}, namespace)
    assert cluster.get(CONFIG_MAPS, "settings", namespace)["data"] == {"a": "2", "b": "3"}
    assert patched["metadata"]["resourceVersion"] != replaced["metadata"]["resourceVersion"]
    cluster.delete(CONFIG_MAPS, "settings", namespace, uid=created["metadata"]["uid"])
    assert cluster.find(CONFIG_MAPS, "settings", namespace) is None
    cluster.delete(CONFIG_MAPS, "settings", namespace)  # once more is no error


def test_a_replace_without_resource_version_never_reaches_the_server(cluster, namespace):
    cluster.create(CONFIG_MAPS, config_map(namespace))
    before = cluster.requests
    with pytest.raises(InvalidInput, match="cannot replace configmaps"):
        cluster.replace(CONFIG_MAPS, config_map(namespace, a="1"))
    assert cluster.requests == before


def test_a_write_under_an_old_version_is_a_conflict(cluster, namespace):
    old = cluster.create(CONFIG_MAPS, config_map(namespace))
    cluster.patch(CONFIG_MAPS, "settings", {"data": {"x": "1"}}, namespace)
    with pytest.raises(Conflict):
        cluster.replace(CONFIG_MAPS, old)
    with pytest.raises(Conflict):
        cluster.patch(
            CONFIG_MAPS, "settings", {"data": {"x": "2"}}, namespace,
            resource_version=old["metadata"]["resourceVersion"],
        )  # fmt: skip
    assert cluster.get(CONFIG_MAPS, "settings", namespace)["data"] == {"x": "1"}


def test_json_and_strategic_patches_have_their_own_content_type(cluster, namespace):
    cluster.create(CONFIG_MAPS, config_map(namespace, a="1"))
    steps = [{"op": "test", "path": "/data/a", "value": "1"}, {"op": "add", "path": "/data/b", "value": "2"}]
    cluster.patch(CONFIG_MAPS, "settings", steps, namespace, kind=PatchKind.JSON)
    body = {"metadata": {"annotations": {"x": "y"}}}
    cluster.patch(CONFIG_MAPS, "settings", body, namespace, kind=PatchKind.STRATEGIC)
    item = cluster.get(CONFIG_MAPS, "settings", namespace)
    assert item["data"] == {"a": "1", "b": "2"}
    assert item["metadata"]["annotations"] == {"x": "y"}


def test_a_dry_run_changes_nothing(cluster, namespace):
    cluster.create(CONFIG_MAPS, config_map(namespace), dry_run=True)
    assert cluster.find(CONFIG_MAPS, "settings", namespace) is None


def test_a_list_longer_than_a_page_comes_back_whole(cluster, namespace, monkeypatch):
    for index in range(23):
        cluster.create(CONFIG_MAPS, config_map(namespace, f"c-{index:02d}"))
    monkeypatch.setattr("capstan.cluster.reading.PAGE", 5)
    before = cluster.requests
    listing = cluster.list(CONFIG_MAPS, namespace, label_selector="app=t")
    assert [item["metadata"]["name"] for item in listing.items] == [f"c-{index:02d}" for index in range(23)]
    assert cluster.requests - before == 5
    assert int(listing.resource_version) > 0


def test_metadata_only_lists_carry_no_data(cluster, namespace):
    cluster.create(CONFIG_MAPS, config_map(namespace, a="1"))
    items = cluster.list(CONFIG_MAPS, namespace, label_selector="app=t", metadata_only=True).items
    assert [set(item) & {"data", "metadata"} for item in items] == [{"metadata"}]


def test_a_missing_object_is_not_found_and_says_where(cluster, namespace):
    with pytest.raises(NotFound) as caught:
        cluster.get(CONFIG_MAPS, "nothing", namespace)
    assert f"configmaps {namespace}/nothing in cluster test" in str(caught.value)
    assert f"kubectl get configmaps nothing -n {namespace}" in str(caught.value)


def test_reads_are_repeated_on_errors_that_pass(running, namespace, faults):
    slept = []
    cluster = running.connect(sleep=slept.append)
    faults(method="GET", path=f"/namespaces/{namespace}$", times=2, action={"status": 503, "retryAfter": 3})
    assert cluster.get(NAMESPACES, namespace)["metadata"]["name"] == namespace
    assert slept == [3.0, 3.0]


def test_reads_give_up_after_a_few_tries(running, namespace, faults):
    cluster = running.connect(sleep=lambda _seconds: None)
    faults(method="GET", path=f"/namespaces/{namespace}$", times=0, action={"status": 500})
    with pytest.raises(ServerFault):
        cluster.get(NAMESPACES, namespace)


def test_a_dropped_read_is_repeated_on_a_new_connection(running, namespace, faults):
    cluster = running.connect(sleep=lambda _seconds: None)
    faults(method="GET", path=f"/namespaces/{namespace}$", action={"drop": "before"})
    assert cluster.get(NAMESPACES, namespace)["metadata"]["name"] == namespace


def test_writes_are_never_repeated_by_the_client(running, namespace, faults):
    cluster = running.connect(sleep=lambda _seconds: None)
    faults(method="POST", path=f"/namespaces/{namespace}/configmaps", action={"status": 429, "retryAfter": 2})
    with pytest.raises(Throttled) as caught:
        cluster.create(CONFIG_MAPS, config_map(namespace))
    assert caught.value.delay == 2.0
    assert cluster.find(CONFIG_MAPS, "settings", namespace) is None


def test_a_write_whose_answer_was_lost_is_unreachable_although_it_happened(running, namespace, faults):
    cluster = running.connect(sleep=lambda _seconds: None)
    faults(method="POST", path=f"/namespaces/{namespace}/configmaps", action={"drop": "after"})
    with pytest.raises(Unreachable):
        cluster.create(CONFIG_MAPS, config_map(namespace))
    assert cluster.find(CONFIG_MAPS, "settings", namespace) is not None


def test_a_port_nobody_listens_on_is_unreachable(running):
    cluster = running.connect(sleep=lambda _seconds: None)
    cluster.configuration.host = "https://127.0.0.1:1"
    with pytest.raises(Unreachable):
        cluster.get(NAMESPACES, "default")


def test_an_api_server_of_another_ca_is_denied_and_not_retried(running, tmp_path):
    slept = []
    other = tmp_path / "other"
    other.mkdir()
    from infra.lab.apiserver.certificates import ClusterPki

    cluster = running.connect(sleep=slept.append)
    ca = tmp_path / "ca.pem"
    ca.write_text(ClusterPki(other, "127.0.0.1").ca_pem)
    cluster.configuration.ssl_ca_cert = str(ca)
    stranger = Cluster("test", cluster.configuration, sleep=slept.append)
    with pytest.raises(Denied, match="cannot get namespaces"):
        stranger.get(NAMESPACES, "default")
    assert slept == []


def test_a_missing_context_is_an_input_error_that_names_the_command(running):
    with pytest.raises(InvalidInput) as caught:
        Cluster.connect(kubeconfig=running.server.kubeconfig, context="nowhere")
    assert caught.value.next_command == "kubectl config get-contexts"


@pytest.mark.parametrize(
    "content",
    [b"root:x:0:0:root:/root:/bin/bash\n", b"\x7fELF\xd0\x00", b"clusters: 5\n", b"[1, 2]\n", b"{unclosed\n"],
    ids=["another file", "a binary", "a number for a list", "a list", "broken YAML"],
)
def test_a_file_that_is_no_kubeconfig_is_an_input_error_and_no_traceback(tmp_path, content):
    file = tmp_path / "config"
    file.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        Cluster.connect(kubeconfig=file)
    assert str(file) in (caught.value.where or "")
    assert caught.value.next_command


def test_a_watch_reports_changes_and_ends_by_itself(cluster, namespace):
    start = cluster.list(CONFIG_MAPS, namespace).resource_version
    cluster.create(CONFIG_MAPS, config_map(namespace))
    cluster.delete(CONFIG_MAPS, "settings", namespace)
    events = cluster.watch(
        CONFIG_MAPS, namespace, resource_version=start, field_selector="metadata.name=settings", seconds=1
    )
    assert [event.type for event in events if event.type != "BOOKMARK"] == ["ADDED", "DELETED"]


def test_following_starts_with_what_is_there_and_goes_on_with_changes(running, cluster, namespace):
    cluster.create(CONFIG_MAPS, config_map(namespace, "first"))
    seen = []

    def write():
        time.sleep(0.2)
        running.connect().create(CONFIG_MAPS, config_map(namespace, "second"))

    writer = threading.Thread(target=write)
    writer.start()
    until = cluster.clock() + 5
    for event in follow(cluster, CONFIG_MAPS, namespace, until=until, label_selector="app=t"):
        if event.type == "ADDED":
            seen.append(event.object["metadata"]["name"])
        if "second" in seen:
            break
    writer.join()
    assert seen == ["first", "second"]


def test_following_survives_a_forgotten_history_and_dropped_streams(running, namespace, faults):
    cluster = running.connect(sleep=lambda _seconds: time.sleep(0.01))
    watches = f"/namespaces/{namespace}/configmaps.*watch"
    faults(method="GET", path=watches, nth=1, action={"status": 410})
    faults(method="GET", path=watches, nth=2, action={"drop": "before"})
    faults(method="GET", path=watches, nth=3, action={"status": 429, "retryAfter": 1})
    cluster.create(CONFIG_MAPS, config_map(namespace))
    synced = 0
    for event in follow(cluster, CONFIG_MAPS, namespace, until=cluster.clock() + 3):
        synced += event.type == "SYNCED"
        if synced == 4:
            break
    assert synced == 4


@pytest.mark.slow
def test_following_distrusts_a_silent_stream(running, namespace, faults):
    cluster = running.connect()
    faults(method="GET", path=f"/namespaces/{namespace}/configmaps.*watch", action={"stall": True})
    began, names = time.monotonic(), []
    threading.Timer(0.2, lambda: running.connect().create(CONFIG_MAPS, config_map(namespace, "late"))).start()
    for event in follow(cluster, CONFIG_MAPS, namespace, until=cluster.clock() + 8, window=1.0, label_selector="app=t"):
        if event.type == "ADDED":
            names.append(event.object["metadata"]["name"])
            break
    assert names == ["late"]
    assert time.monotonic() - began < 8


def test_every_request_is_counted_and_named(running, namespace, cluster):
    before = cluster.requests
    cluster.get(NAMESPACES, namespace)
    cluster.find(PODS, "none", namespace)
    assert cluster.requests - before == 2
    assert cluster.auth_headers()["User-Agent"].startswith("capstan/")
