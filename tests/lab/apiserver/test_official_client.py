"""The official Python client, unmodified, against the lab's API server."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client as kubernetes
from kubernetes import config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.apiserver.lab_server import LabServer


@pytest.fixture
def api(lab: LabServer) -> Iterator[kubernetes.ApiClient]:
    configuration = kubernetes.Configuration()
    config.load_kube_config(str(lab.server.kubeconfig), client_configuration=configuration)
    configuration.proxy = None
    with kubernetes.ApiClient(configuration) as connection:
        yield connection


@pytest.fixture
def core(api: kubernetes.ApiClient) -> kubernetes.CoreV1Api:
    return kubernetes.CoreV1Api(api)


def config_map(name: str, **data: str) -> kubernetes.V1ConfigMap:
    return kubernetes.V1ConfigMap(metadata=kubernetes.V1ObjectMeta(name=name, labels={"t": name}), data=data)


def test_an_object_is_created_read_patched_replaced_and_deleted(core: kubernetes.CoreV1Api) -> None:
    created = core.create_namespaced_config_map("default", config_map("life", a="1"))
    assert created.metadata.uid
    core.patch_namespaced_config_map("life", "default", {"data": {"b": "2"}})
    found = core.read_namespaced_config_map("life", "default")
    assert found.data == {"a": "1", "b": "2"}
    found.data = {"c": "3"}
    replaced = core.replace_namespaced_config_map("life", "default", found)
    assert replaced.data == {"c": "3"}
    found.metadata.resource_version = created.metadata.resource_version
    with pytest.raises(ApiException) as conflict:
        core.replace_namespaced_config_map("life", "default", found)
    assert (conflict.value.status, conflict.value.reason) == (409, "Conflict")
    core.delete_namespaced_config_map("life", "default")
    with pytest.raises(ApiException) as gone:
        core.read_namespaced_config_map("life", "default")
    assert gone.value.status == 404


def test_a_watch_delivers_a_change_made_after_it_was_opened(core: kubernetes.CoreV1Api) -> None:
    version = core.list_namespaced_config_map("default").metadata.resource_version
    timer = threading.Timer(0.2, core.create_namespaced_config_map, ("default", config_map("seen", a="1")))
    timer.start()
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_config_map, "default", resource_version=version, label_selector="t=seen", timeout_seconds=5
    ):
        assert (event["type"], event["object"].metadata.name) == ("ADDED", "seen")
        stream.stop()
    timer.join()


def test_a_long_list_comes_in_chunks_of_one_snapshot(core: kubernetes.CoreV1Api) -> None:
    for number in range(5):
        core.create_namespaced_config_map("kube-public", config_map(f"chunk-{number}"))
    names: list[str] = []
    versions = set()
    token = None
    while True:
        page = core.list_namespaced_config_map("kube-public", limit=2, _continue=token)
        names += [item.metadata.name for item in page.items]
        versions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if not token:
            break
        core.create_namespaced_config_map("kube-public", config_map(f"later-{len(names)}"))
    assert names == [f"chunk-{number}" for number in range(5)]
    assert len(versions) == 1


def test_server_side_apply_through_the_dynamic_client_owns_its_fields(api: kubernetes.ApiClient) -> None:
    resource: Any = DynamicClient(api).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
    applied = resource.server_side_apply(body=body, namespace="default", field_manager="capstan")
    owners = [(entry.manager, entry.operation) for entry in applied.metadata.managedFields]
    assert owners == [("capstan", "Apply")]


def test_a_token_request_yields_a_login(core: kubernetes.CoreV1Api, lab: LabServer) -> None:
    account = kubernetes.V1ServiceAccount(metadata=kubernetes.V1ObjectMeta(name="robot"))
    core.create_namespaced_service_account("default", account)
    request = kubernetes.AuthenticationV1TokenRequest(spec=kubernetes.V1TokenRequestSpec(audiences=[]))
    token = core.create_namespaced_service_account_token("robot", "default", request).status.token
    configuration = kubernetes.Configuration(host=lab.server.url)
    configuration.ssl_ca_cert = str(lab.server.pki.ca_certificate)
    configuration.proxy = None
    configuration.api_key = {"authorization": f"Bearer {token}"}
    with kubernetes.ApiClient(configuration) as connection:
        review = kubernetes.AuthenticationV1Api(connection).create_self_subject_review({})
        assert review.status.user_info.username == "system:serviceaccount:default:robot"
        with pytest.raises(ApiException) as refused:
            kubernetes.CoreV1Api(connection).list_namespaced_secret("default")
        assert refused.value.status == 403


def test_the_same_objects_are_served_after_a_stop_and_a_start(core: kubernetes.CoreV1Api, lab: LabServer) -> None:
    core.create_namespaced_config_map("default", config_map("stays", a="1"))
    url = lab.server.url
    lab.run(lab.server.stop())
    lab.run(lab.server.start())
    assert lab.server.url == url
    assert core.read_namespaced_config_map("stays", "default").data == {"a": "1"}
