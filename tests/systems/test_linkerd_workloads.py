"""Workloads whose restart would bring no fresh proxy: each is told why, and what can be chosen."""

from __future__ import annotations

import secrets as random

import pytest

from capstan.cluster.resources import CRON_JOBS, DEPLOYMENTS, NAMESPACES, PODS, SERVICE_ACCOUNTS, STATEFUL_SETS
from capstan.cluster.workloads import PodRef
from capstan.errors import GateRefused
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.data_plane import dormant, require_injected, stale_owners, why_restart_is_useless
from capstan.systems.linkerd.pods import only_proxy_runs, proxy_container, why_not_injected
from capstan.trust.observation import Owner
from tests.pki.ca import make
from tests.support.apiserver import Running
from tests.systems.linkerd_evidence import healthy, with_peer

OLD, NEW = make("root.linkerd.cluster.local").certificate, make("root.linkerd.cluster.local").certificate
WANTED = frozenset({NEW.fingerprint})
APP = {"name": "app", "image": "app:1"}


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


def new_namespace(cluster, **metadata):
    name = f"w-{random.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}}
    created = cluster.create(NAMESPACES, body)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    cluster.create(SERVICE_ACCOUNTS, account)  # no controller makes it here
    return created


def proxy(*roots):
    text = Bundle.of(*roots).pem()
    return {
        "name": "linkerd-proxy",
        "image": "proxy:1",
        "env": [{"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": text}],
    }


def template(*containers, annotations=None, **spec):
    metadata = {"labels": {"app": "web"}, "annotations": annotations or {}}
    return {"metadata": metadata, "spec": {"containers": [APP, *containers], **spec}}


def create(cluster, resource, namespace, pod_template, name="web", **spec):
    if resource is CRON_JOBS:
        pod_template["spec"]["restartPolicy"] = "Never"
        spec = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": pod_template}}}
    else:
        spec = {"selector": {"matchLabels": {"app": "web"}}, "template": pod_template, **spec}
    if resource is STATEFUL_SETS:
        spec["serviceName"] = "web"
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
    return cluster.create(resource, {**body, "metadata": {"name": name, "namespace": namespace}})


MARKED = {"annotations": {"linkerd.io/inject": "enabled"}}
OPAQUE = {"annotations": {"config.linkerd.io/opaque-ports": "4222,6379"}}


@pytest.mark.proves("workloads", "pods that would come back un-injected", "the injector's own rules, before a restart")
@pytest.mark.parametrize(
    ("metadata", "pod_template", "reason"),
    [
        (MARKED, template(), ""),
        ({"annotations": {"linkerd.io/inject": "ingress"}}, template(), ""),
        ({}, template(annotations={"linkerd.io/inject": "enabled"}), ""),
        ({}, template(), "neither its template nor its namespace"),
        (MARKED, template(annotations={"linkerd.io/inject": "disabled"}), "its template has the annotation"),
        ({"annotations": {"linkerd.io/inject": "disabled"}}, template(), "its namespace has the annotation"),
        (MARKED, template(annotations={"linkerd.io/inject": ""}), ""),
        ({"annotations": {"linkerd.io/inject": ""}}, template(), "neither its template nor its namespace"),
        (MARKED, template(annotations={"linkerd.io/inject": "true"}), "its template has the annotation"),
        (
            {"annotations": {"linkerd.io/inject": "yes"}},
            template(annotations={"linkerd.io/inject": "enabled"}),
            "its namespace has the annotation linkerd.io/inject: yes, which Linkerd does not know",
        ),
        (MARKED, template(hostNetwork=True), "host's network"),
        ({**MARKED, "labels": {"config.linkerd.io/admission-webhooks": "disabled"}}, template(), "label"),
    ],
)
def test_what_the_injector_would_pass_over_is_known_before_a_restart(metadata, pod_template, reason):
    found = why_not_injected(pod_template, {"metadata": {"name": "shop", **metadata}})
    assert (reason in found) if reason else found == ""


@pytest.mark.proves(
    "workloads", "opaque namespaces", "ports marked opaque change nothing: injected and restarted as others"
)
def test_a_namespace_of_opaque_ports_is_restarted_if_its_templates_are_marked(cluster):
    namespace = new_namespace(cluster, **OPAQUE)
    name = namespace["metadata"]["name"]
    create(cluster, DEPLOYMENTS, name, template(annotations={"linkerd.io/inject": "enabled"}))
    assert why_restart_is_useless(cluster, Owner("Deployment", name, "web"), namespace) == ""


@pytest.mark.proves("workloads", "pods that would come back un-injected", "listed with the reason, and not restarted")
def test_a_workload_that_would_lose_its_proxy_is_not_restarted(cluster):
    namespace = new_namespace(cluster)
    name = namespace["metadata"]["name"]
    create(cluster, DEPLOYMENTS, name, template())
    reason = why_restart_is_useless(cluster, Owner("Deployment", name, "web"), namespace)
    assert "would come back without its proxy" in reason
    assert "annotate it, or take it out of the mesh" in reason


@pytest.mark.proves("workloads", "manually injected templates", "listed: a restart would only copy the roots")
@pytest.mark.parametrize("native", [True, False], ids=["native sidecar", "plain container"])
def test_a_workload_injected_by_hand_is_listed_however_its_proxy_stands_in_the_template(cluster, native):
    namespace = new_namespace(cluster, **MARKED)
    name = namespace["metadata"]["name"]
    by_hand = proxy(OLD)
    spec = template(initContainers=[{**by_hand, "restartPolicy": "Always"}]) if native else template(by_hand)
    create(cluster, DEPLOYMENTS, name, spec)
    assert "inject and apply it again" in why_restart_is_useless(cluster, Owner("Deployment", name, "web"), namespace)


def test_a_template_whose_proxy_takes_its_roots_by_reference_is_restarted_as_the_control_plane_is(cluster):
    namespace = new_namespace(cluster)
    name = namespace["metadata"]["name"]
    reference = {"configMapKeyRef": {"name": "linkerd-identity-trust-roots", "key": "ca-bundle.crt"}}
    by_reference = {**proxy(OLD), "env": [{"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "valueFrom": reference}]}
    create(cluster, DEPLOYMENTS, name, template(by_reference))
    assert why_restart_is_useless(cluster, Owner("Deployment", name, "web"), namespace) == ""


@pytest.mark.proves("workloads", "scaled to 0", "injected by hand with old roots: listed though no pod shows it")
def test_templates_without_a_pod_that_hold_old_roots_are_listed(cluster):
    name = new_namespace(cluster)["metadata"]["name"]
    create(cluster, DEPLOYMENTS, name, template(proxy(OLD)), "asleep", replicas=0)
    create(cluster, DEPLOYMENTS, name, template(proxy(NEW)), "fresh", replicas=0)
    create(cluster, DEPLOYMENTS, name, template(), "by-webhook", replicas=0)
    create(cluster, DEPLOYMENTS, name, template(proxy(OLD)), "awake", replicas=1)
    create(cluster, STATEFUL_SETS, name, template(proxy(OLD, NEW)), "store", replicas=0)
    create(cluster, CRON_JOBS, name, template(proxy(OLD)), "nightly")
    found = {entry.owner: entry.reason for entry in dormant(cluster, WANTED) if entry.owner.namespace == name}
    assert set(found) == {
        Owner("Deployment", name, "asleep"),
        Owner("StatefulSet", name, "store"),
        Owner("CronJob", name, "nightly"),
    }
    assert all("has no pod now" in reason and "apply it again" in reason for reason in found.values())


def pod_of(namespace, name="work-1", *, own="terminated", sidecar="running", containers=("app",)):
    statuses = [{"name": entry, "state": {own: {}}} for entry in containers]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [APP, proxy(OLD)]},
        "status": {"containerStatuses": [*statuses, {"name": "linkerd-proxy", "state": {sidecar: {}}}]},
    }


@pytest.mark.proves("workloads", "Jobs that run", "one that only its proxy keeps from ending is told apart")
def test_a_job_whose_work_is_done_and_whose_proxy_runs_on_is_recognised():
    assert only_proxy_runs(pod_of("shop"))
    assert not only_proxy_runs(pod_of("shop", own="running"))
    assert not only_proxy_runs(pod_of("shop", sidecar="terminated"))
    assert not only_proxy_runs(pod_of("shop", containers=()))


@pytest.mark.proves("workloads", "Jobs that run", "waited for, with the operator's choice")
def test_a_job_that_works_is_left_to_the_general_rule_and_one_that_cannot_end_gets_a_command(cluster):
    namespace = new_namespace(cluster, **MARKED)
    name = namespace["metadata"]["name"]
    body = pod_of(name)
    metadata = {"name": "work-1", "namespace": name}
    pod = cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body["spec"]})
    owner, ref = Owner("Job", name, "work"), PodRef(name, "work-1", pod["metadata"]["uid"])
    assert why_restart_is_useless(cluster, owner, namespace, [ref]) == ""
    cluster.patch(PODS, "work-1", {"status": body["status"]}, name, subresource="status")
    reason = why_restart_is_useless(cluster, owner, namespace, [ref])
    assert "keeps it from ending" in reason
    assert f"kubectl delete pod -n {name} work-1" in reason


@pytest.mark.proves("workloads", "pods that come back un-injected", "the restart stops at the first of them")
def test_a_pod_that_came_back_without_its_proxy_is_named(cluster):
    name = new_namespace(cluster)["metadata"]["name"]
    for pod, containers in (("bare", [APP]), ("meshed", [APP, proxy(OLD)])):
        metadata = {"name": pod, "namespace": name}
        spec = {"containers": containers}
        cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    require_injected(cluster, Owner("Pod", name, "meshed"))
    with pytest.raises(GateRefused, match="came back without their proxy") as caught:
        require_injected(cluster, Owner("Pod", name, "bare"))
    assert f"{name}/bare" in caught.value.observed


@pytest.mark.proves("workloads", "extension pods (viz, multicluster gateway)", "restarted as all others")
def test_pods_of_extensions_are_workloads_like_all_others():
    view = healthy().view
    wanted = view.bundle.fingerprints
    assert stale_owners(view, wanted, None) == {}
    for pod in ("tap-v1", "linkerd-gateway-1"):
        namespace = next(proxy.peer.namespace for proxy in view.proxies if proxy.peer.pod == pod)
        found = stale_owners(with_peer(healthy(), pod, trusts=frozenset({OLD.fingerprint})).view, wanted, None)
        assert [(owner.namespace, [ref.name for ref in refs]) for owner, refs in found.items()] == [(namespace, [pod])]


@pytest.mark.proves("workloads", "native sidecars", "found among the init containers, in pods and in templates")
def test_a_native_sidecar_is_found_among_the_init_containers():
    native = template(initContainers=[{**proxy(OLD), "restartPolicy": "Always"}])["spec"]
    assert proxy_container(native)["restartPolicy"] == "Always"
    assert proxy_container(template()["spec"]) is None
