"""How the add-on's secrets come to istiod, and who does not have them yet: read from the driver's own objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import CRON_JOBS, Resource
from capstan.errors import NotFound
from capstan.systems.istio.delivery import POD_STATUSES, Delivery, Way, detect, outstanding
from capstan.systems.istio.key_vault import Kept
from infra.lab.aks import crds
from tests.systems.istio.writing import Ca, make_secret, new_namespace, pem

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster

OLD, NEW = Ca.of("A"), Ca.of("B")
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
NAMES = ("root-cert", "ca-cert", "ca-key", "cert-chain")
WANTED = dict(zip(NAMES, ("a1" * 16, "b2" * 16, "c3" * 16, "d4" * 16), strict=True))


def kept(ca: Ca = OLD) -> Kept:
    return Kept(ca.files(), WANTED, ca.key)


def pod(name: str, *, mounted: str = "istio-ca", leaving: bool = False) -> dict[str, Any]:
    csi = {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {"secretProviderClass": mounted}}
    volumes = [{"name": "cacerts", "csi": csi}] if mounted else []
    going = {"deletionTimestamp": "2026-11-22T05:00:00Z"} if leaving else {}
    return {"metadata": {"name": name, **going}, "spec": {"volumes": volumes}}


def layout(namespace: str, *pods: dict[str, Any], ca_secret: str = "") -> Any:
    return SimpleNamespace(namespace=namespace, pods=pods, ca_secret=ca_secret)


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    return new_namespace(cluster)


@pytest.fixture
def driver(cluster: Cluster) -> None:
    """The driver's definitions are installed."""
    for item in crds.definitions():
        cluster.create(CUSTOM_RESOURCE_DEFINITIONS, item)
    for _ in range(200):
        try:
            cluster.list(POD_STATUSES, "default")
        except NotFound:
            continue
        return


def status(cluster: Cluster, namespace: str, name: str, versions: dict[str, str], of: str = "istio-ca") -> None:
    objects = [{"id": f"secret/{key}", "version": version} for key, version in versions.items()]
    body = {
        "apiVersion": POD_STATUSES.api_version, "kind": POD_STATUSES.kind,
        "metadata": {"name": f"{name}-{namespace}-{of}", "namespace": namespace},
        "status": {"podName": name, "secretProviderClassName": of, "mounted": True, "objects": objects},
    }  # fmt: skip
    cluster.create(POD_STATUSES, body)


def cron_job(cluster: Cluster, namespace: str, schedule: str, *, suspend: bool = False) -> None:
    template = {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}
    body = {
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "istio-cert-validator-cronjob-asm-1-21", "namespace": namespace},
        "spec": {"schedule": schedule, "suspend": suspend, "jobTemplate": template},
    }  # fmt: skip
    cluster.create(CRON_JOBS, body)


@pytest.mark.usefixtures("driver")
def test_a_volume_of_the_driver_is_read_pod_by_pod(cluster, namespace):
    where = layout(namespace, pod("istiod-1"), pod("istiod-2"), pod("istiod-3"), pod("going", leaving=True))
    assert detect(cluster, where) == Delivery(Way.CSI)
    status(cluster, namespace, "istiod-1", WANTED)
    status(cluster, namespace, "istiod-2", {**WANTED, "ca-key": "0" * 32, "ca-cert": ""})
    status(cluster, namespace, "istiod-3", WANTED, of="another-class")
    assert outstanding(cluster, where, kept(), Way.CSI) == (
        "istiod-2: still has ca-cert@?, ca-key@00000000",
        "istiod-3: its volume is not mounted yet",
    )


@pytest.mark.usefixtures("driver")
def test_every_pod_with_the_latest_versions_leaves_nobody_outstanding(cluster, namespace):
    where = layout(namespace, pod("istiod-1"), pod("helper", mounted=""))
    status(cluster, namespace, "istiod-1", WANTED)
    assert outstanding(cluster, where, kept(), Way.CSI) == ()


@pytest.mark.usefixtures("driver")
def test_of_a_class_that_asks_for_several_versions_the_latest_counts(cluster, namespace):
    where = layout(namespace, pod("istiod-1"))
    older = {f"{name}/1": "0" * 32 for name in WANTED}
    status(cluster, namespace, "istiod-1", {f"{name}/0": version for name, version in WANTED.items()} | older)
    assert outstanding(cluster, where, kept(), Way.CSI) == ()


def test_a_volume_of_a_driver_whose_objects_cannot_be_seen_is_an_unknown_way(cluster, namespace):
    where = layout(namespace, pod("istiod-1"))
    assert detect(cluster, where).way is Way.UNKNOWN
    assert outstanding(cluster, where, kept(), Way.UNKNOWN) == ()


def test_a_synced_secret_is_compared_byte_for_byte(cluster, namespace):
    where = layout(namespace, pod("istiod-1", mounted=""))
    assert detect(cluster, where).way is Way.UNKNOWN
    assert outstanding(cluster, where, kept(), Way.CACERTS) == (f"secret {namespace}/cacerts is not there",)
    make_secret(cluster, namespace, OLD.entries())
    assert detect(cluster, where).way is Way.CACERTS
    assert outstanding(cluster, where, kept(), Way.CACERTS) == ()
    assert outstanding(cluster, where, kept(NEW), Way.CACERTS) == (
        f"secret {namespace}/cacerts: another root-cert.pem, ca-cert.pem, cert-chain.pem, ca-key.pem than in the vault",
    )
    same_key = Kept(OLD.files(pem(OLD.root.certificate, NEW.root.certificate)), WANTED, OLD.key)
    assert outstanding(cluster, where, same_key, Way.CACERTS) == (
        f"secret {namespace}/cacerts: another root-cert.pem than in the vault",
    )


def test_a_synced_secret_that_cannot_be_read_is_outstanding_and_its_key_is_not_quoted(cluster, namespace):
    make_secret(cluster, namespace, {**OLD.entries(), "ca-key.pem": "-----BEGIN NONSENSE-----hush"})
    (told,) = outstanding(cluster, layout(namespace), kept(), Way.CACERTS)
    assert told.startswith(f"secret {namespace}/cacerts: ")
    assert "hush" not in told


@pytest.mark.parametrize(
    ("schedule", "suspend", "interval"),
    [("*/10 * * * *", False, 600.0), ("*/2 * * * *", False, 120.0), ("7 * * * *", False, 600.0),
     ("*/10 * * * *", True, None)],
)  # fmt: skip
def test_the_cronjob_of_older_revisions_is_found_with_its_interval(cluster, namespace, schedule, suspend, interval):
    cron_job(cluster, namespace, schedule, suspend=suspend)
    assert detect(cluster, layout(namespace)).validator_interval == interval


def test_no_cronjob_is_assumed(cluster, namespace):
    assert detect(cluster, layout(namespace)).validator_interval is None
