"""Volumes of the secrets-store driver are filled, rotated and told of as the real driver does."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.aks import crds
from infra.lab.aks.provider import ProviderError, parse_objects
from infra.lab.client import ApiError
from infra.lab.keyvault import Fault
from tests.lab.aks.csi_lab import CLASSES, SECRETS, csi, eventually, mounting, parameters, versions
from tests.lab.cluster.cluster_lab import PODS, ready

if TYPE_CHECKING:
    from tests.lab.aks.csi_lab import CsiLab

JSON = dict[str, Any]
EVENTS = "/api/v1/namespaces/default/events"


def test_a_pod_finds_its_secrets_under_their_aliases_and_the_status_says_which_versions(csi_lab: CsiLab) -> None:
    first, second = csi_lab.put("plain", "A"), csi_lab.put("renamed", "B\n")

    async def script() -> None:
        await csi_lab.add_class("files", "plain", "renamed=root-cert.pem")
        await csi_lab.client.create(PODS, mounting("reader", "files"))
        instance = await csi_lab.instance("reader")
        assert instance.path("/certs/plain").read_bytes() == b"A"
        assert instance.path("/certs/root-cert.pem").read_bytes() == b"B\n"
        assert instance.path("/certs/..data").is_symlink()
        found = await csi_lab.status("reader", "files")
        pod = await csi_lab.client.get(f"{PODS}/reader")
        uid = pod["metadata"]["uid"]
        assert versions(found) == {"secret/plain": first, "secret/renamed": second}
        status = found["status"]
        assert (status["mounted"], status["podName"], status["secretProviderClassName"]) == (True, "reader", "files")
        assert status["targetPath"] == f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/certs/mount"
        labels = found["metadata"]["labels"]
        assert labels == {"internal.secrets-store.csi.k8s.io/node-name": pod["spec"]["nodeName"]}
        assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [uid]

    csi_lab.run(script())


def test_a_new_version_reaches_file_and_status_with_the_next_poll(csi_lab: CsiLab) -> None:
    csi_lab.put("rotated", "old")

    async def script() -> None:
        await csi_lab.add_class("rotating", "rotated")
        await csi_lab.client.create(PODS, mounting("rotates", "rotating"))
        instance = await csi_lab.instance("rotates")
        new = csi_lab.put("rotated", "new")
        await csi_lab.status("rotates", "rotating", lambda found: versions(found) == {"secret/rotated": new})
        assert instance.path("/certs/rotated").read_text() == "new"
        events = (await csi_lab.client.list(EVENTS))["items"]
        told = {event["reason"]: event["message"] for event in events if event["involvedObject"]["name"] == "rotates"}
        message = "successfully rotated mounted contents for spc default/rotating"
        assert told["MountRotationComplete"] == message

    csi_lab.run(script())


def test_without_rotation_what_was_mounted_stays_until_the_pod_is_made_anew(csi_lab: CsiLab) -> None:
    old = csi_lab.put("kept", "old")
    csi_lab.rotation.enabled = False

    async def script() -> None:
        await csi_lab.add_class("keeping", "kept")
        await csi_lab.client.create(PODS, mounting("keeps", "keeping"))
        instance = await csi_lab.instance("keeps")
        new = csi_lab.put("kept", "new")
        await asyncio.sleep(csi_lab.rotation.poll_seconds * 4)
        assert instance.path("/certs/kept").read_text() == "old"
        assert versions(await csi_lab.status("keeps", "keeping")) == {"secret/kept": old}
        await csi_lab.client.create(PODS, mounting("keeps-not", "keeping"))
        assert (await csi_lab.instance("keeps-not")).path("/certs/kept").read_text() == "new"
        assert versions(await csi_lab.status("keeps-not", "keeping")) == {"secret/kept": new}

    csi_lab.run(script())


def test_secrets_changed_while_they_are_read_are_mounted_torn_and_whole_after_the_next_poll(csi_lab: CsiLab) -> None:
    csi_lab.put("torn-cert", "cert 1")
    csi_lab.put("torn-key", "key 1")
    csi_lab.delays.between_objects = 0.3

    async def script() -> None:
        await csi_lab.add_class("tearing", "torn-cert", "torn-key")
        csi_lab.vault.faults.requests.clear()
        await csi_lab.client.create(PODS, mounting("torn", "tearing"))
        await eventually(lambda: "get" in csi_lab.vault.faults.requests)
        await asyncio.sleep(0.1)  # the first has been answered, the second is not asked for yet
        csi_lab.put("torn-cert", "cert 2")
        csi_lab.put("torn-key", "key 2")
        instance = await csi_lab.instance("torn")
        assert instance.path("/certs/torn-cert").read_text() == "cert 1"
        assert instance.path("/certs/torn-key").read_text() == "key 2"
        await eventually(lambda: instance.path("/certs/torn-cert").read_text() == "cert 2")
        assert instance.path("/certs/torn-key").read_text() == "key 2"

    csi_lab.run(script())


@pytest.mark.slow
def test_a_pod_whose_secret_is_missing_waits_with_an_event_and_starts_once_it_is_there(csi_lab: CsiLab) -> None:
    async def script() -> None:
        await csi_lab.add_class("late", "appears-later")
        await csi_lab.client.create(PODS, mounting("waits", "late"))
        key = "FailedMount"
        found = await csi_lab.cluster.until(
            EVENTS,
            lambda o: any(e["reason"] == key and e["involvedObject"]["name"] == "waits" for e in o.values()),
        )
        messages = [e["message"] for e in found.values() if e["reason"] == key]
        assert any("SecretNotFound" in text and "objectName:appears-later" in text for text in messages)
        csi_lab.put("appears-later", "here")
        await csi_lab.cluster.pod("waits", ready)
        assert (await csi_lab.instance("waits")).path("/certs/appears-later").read_text() == "here"

    csi_lab.run(script())


def test_a_vault_that_cannot_be_read_leaves_the_files_and_says_so_in_an_event(csi_lab: CsiLab) -> None:
    csi_lab.put("guarded", "kept")

    async def script() -> None:
        await csi_lab.add_class("guarding", "guarded")
        await csi_lab.client.create(PODS, mounting("guards", "guarding"))
        instance = await csi_lab.instance("guards")
        csi_lab.vault.faults.add(Fault.forbidden("get", times=1000))
        csi_lab.put("guarded", "unread")
        found = await csi_lab.cluster.until(
            EVENTS,
            lambda o: any(
                e["reason"] == "MountRotationFailed" and e["involvedObject"]["name"] == "guards" for e in o.values()
            ),
        )
        assert any("ForbiddenByRbac" in e["message"] or "not authorized" in e["message"] for e in found.values())
        assert instance.path("/certs/guarded").read_text() == "kept"
        csi_lab.vault.faults.clear()
        await eventually(lambda: instance.path("/certs/guarded").read_text() == "unread")

    csi_lab.run(script())


def test_a_synced_secret_follows_the_files_and_belongs_to_the_replica_set(csi_lab: CsiLab) -> None:
    csi_lab.put("synced", "one")
    wanted = [{"secretName": "cacerts", "type": "opaque", "data": [{"objectName": "synced", "key": "root-cert.pem"}]}]

    async def script() -> None:
        await csi_lab.add_class("syncing", "synced", secret_objects=wanted)
        labels = {"app": "syncs"}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "syncs"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": csi("syncing")},
            },
        }
        path = "/apis/apps/v1/namespaces/default/deployments"
        await csi_lab.client.create(path, deployment)
        key = ("default", "cacerts")
        found = (await csi_lab.cluster.until(SECRETS, lambda o: key in o))[key]
        assert found["type"] == "opaque"
        assert found["metadata"]["labels"] == {"secrets-store.csi.k8s.io/managed": "true"}
        assert {owner["kind"] for owner in found["metadata"]["ownerReferences"]} == {"ReplicaSet"}
        assert found["data"] == {"root-cert.pem": base64.b64encode(b"one").decode()}
        csi_lab.put("synced", "two")
        fresh = {"root-cert.pem": base64.b64encode(b"two").decode()}
        await csi_lab.cluster.until(SECRETS, lambda o: key in o and o[key]["data"] == fresh)
        await csi_lab.client.delete(f"{path}/syncs", {"propagationPolicy": "Foreground"})
        await csi_lab.cluster.gone(f"{SECRETS}/cacerts")

    csi_lab.run(script())


def test_the_status_object_goes_with_its_pod_and_the_vault_is_not_asked_any_more(csi_lab: CsiLab) -> None:
    csi_lab.put("left", "x")

    async def script() -> None:
        await csi_lab.add_class("leaving", "left")
        await csi_lab.client.create(PODS, mounting("leaves", "leaving"))
        await csi_lab.instance("leaves")
        await csi_lab.client.delete(f"{PODS}/leaves", {"gracePeriodSeconds": 0})
        await csi_lab.cluster.gone(f"{crds.pod_statuses('default')}/leaves-default-leaving")
        await eventually(lambda: all(mount.class_name != "leaving" for mount in csi_lab.driver.mounts()))

    csi_lab.run(script())


def test_a_driver_that_no_node_has_is_named_in_the_event(csi_lab: CsiLab) -> None:
    async def script() -> None:
        body = mounting("driverless", "any")
        body["spec"]["volumes"][0]["csi"]["driver"] = "disks.example"
        await csi_lab.client.create(PODS, body)
        found = await csi_lab.cluster.until(
            EVENTS, lambda o: any(e["involvedObject"]["name"] == "driverless" for e in o.values())
        )
        told = [e["message"] for e in found.values() if e["involvedObject"]["name"] == "driverless"]
        assert any("driver name disks.example not found in the list of registered CSI drivers" in text for text in told)

    csi_lab.run(script())


def test_a_class_that_does_not_exist_keeps_the_pod_waiting(csi_lab: CsiLab) -> None:
    async def script() -> None:
        with pytest.raises(ApiError):
            await csi_lab.client.get(f"{CLASSES}/nowhere")
        await csi_lab.client.create(PODS, mounting("classless", "nowhere"))
        found = await csi_lab.cluster.until(
            EVENTS, lambda o: any(e["involvedObject"]["name"] == "classless" for e in o.values())
        )
        told = [e["message"] for e in found.values() if e["involvedObject"]["name"] == "classless"]
        assert any("failed to mount secrets store objects for pod default/classless" in text for text in told)

    csi_lab.run(script())


def test_objects_are_a_list_of_texts_in_a_text() -> None:
    found = parse_objects(parameters("root-cert=root-cert.pem", "ca-key"))
    assert [(wanted.name, wanted.file, wanted.version) for wanted in found] == [
        ("root-cert", "root-cert.pem", ""),
        ("ca-key", "ca-key", ""),
    ]


@pytest.mark.parametrize(
    ("objects", "complaint"),
    [
        ("", "objects is not set"),
        ("array: []", "objects array is empty"),
        ("array:\n  - |\n    objectType: secret\n", "objectName is not set"),
        ("array:\n  - |\n    objectName: a\n    objectType: key\n", "invalid objectType 'key'"),
        ("array:\n  - |\n    objectName: a\n    objectType: secret\n    objectEncoding: rot13\n", "objectEncoding"),
        ("array:\n  - [", "failed to yaml unmarshal objects"),
        (
            "array:\n"
            "  - |\n    objectName: a\n    objectType: secret\n"
            "  - |\n    objectName: b\n    objectType: secret\n    objectAlias: a\n",
            "two objects have one file name",
        ),
    ],
)
def test_objects_that_cannot_be_are_refused(objects: str, complaint: str) -> None:
    with pytest.raises(ProviderError, match=complaint.replace("[", r"\[")):
        parse_objects({"objects": objects})


@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [("keyvaultName", "keyvaultName is not set"), ("tenantId", "tenantId"), ("useVMManagedIdentity", "no identity")],
)
def test_a_class_without_vault_tenant_or_identity_reads_nothing(
    csi_lab: CsiLab, parameter: str, complaint: str
) -> None:
    given = parameters("x")
    del given[parameter]
    with pytest.raises(ProviderError, match=complaint):
        csi_lab.run(csi_lab.provider.mount(given))
