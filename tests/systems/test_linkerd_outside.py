"""Machines outside the cluster that are in the mesh: somebody answers for each of them, before anything begins."""

from __future__ import annotations

import pytest

from capstan.cluster.resources import NAMESPACES, Resource
from capstan.errors import NotFound
from capstan.systems.base import Severity, Status
from capstan.systems.linkerd.checks_evidence import Answer
from capstan.systems.linkerd.outside import EXTERNAL_WORKLOADS, external_workloads, left_to_their_keepers
from tests.support.apiserver import Running
from tests.systems.linkerd_evidence import check, healthy

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
CHECK = "workloads outside the cluster are accounted for"
ROW = pytest.mark.proves(
    "workloads", "machines outside the cluster (ExternalWorkload)", "refused until somebody answers"
)


def machine(name="db-1", **annotations):
    """As Linkerd's page has it."""
    return {
        "apiVersion": "workload.linkerd.io/v1beta1",
        "kind": "ExternalWorkload",
        "metadata": {"name": name, "namespace": "vms", "annotations": annotations},
        "spec": {
            "meshTLS": {"identity": "spiffe://root.linkerd.cluster.local/db", "serverName": "db.cluster.local"},
            "workloadIPs": [{"ip": "10.0.3.7"}],
            "ports": [{"port": 5432, "name": "postgres"}],
        },
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def cluster(running):
    cluster = running.connect()
    yield cluster
    cluster.close()


@ROW
def test_a_machine_that_nobody_answers_for_fails_the_check_with_what_to_say():
    found = check(healthy(outside=Answer((machine(), machine("db-2", **{"capstan.dev/turned": "by-hand"})))), CHECK)
    assert (found.status, found.level) == (Status.ERROR, Severity.ERROR)
    assert "vms/db-1 (spiffe://root.linkerd.cluster.local/db, 10.0.3.7)" in found.message
    assert "db-2" not in found.message
    assert "capstan.dev/turned=by-hand" in found.message


@ROW
def test_a_machine_that_is_turned_by_hand_is_a_warning_and_stays_in_sight():
    found = check(healthy(outside=Answer((machine(**{"capstan.dev/turned": "by-hand"}),))), CHECK)
    assert found.status is Status.WARNING
    assert "vms/db-1" in found.message


def test_no_machine_passes_and_one_that_may_be_there_does_not():
    assert check(healthy(), CHECK).status is Status.OK
    found = check(healthy(outside=Answer((), "cannot list externalworkloads")), CHECK)
    assert found.status is Status.ERROR
    assert "cannot list externalworkloads" in found.message


@ROW
def test_they_are_found_where_linkerd_knows_them_and_listed_by_each_restart(cluster):
    assert external_workloads(cluster) == ()  # before 2.15
    names = {"plural": "externalworkloads", "singular": "externalworkload", "kind": "ExternalWorkload"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "workload.linkerd.io", "scope": "Namespaced", "names": names, "versions": [version]}
    metadata = {"name": "externalworkloads.workload.linkerd.io"}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    cluster.create(CRDS, {**body, "metadata": metadata, "spec": spec})
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vms"}})
    until = cluster.clock() + 5
    while True:
        try:
            cluster.create(EXTERNAL_WORKLOADS[0], machine())
            break
        except NotFound:  # not served yet
            assert cluster.clock() < until
            cluster.sleep(0.05)
    (found,) = external_workloads(cluster)
    assert found["metadata"]["name"] == "db-1"
    (left,) = left_to_their_keepers(cluster)
    assert str(left.owner) == "externalworkload/db-1 -n vms"
    assert "put the bundle on it" in left.reason
