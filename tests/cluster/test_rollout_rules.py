"""A rollout has ended exactly when `kubectl rollout status` says so."""

from __future__ import annotations

import pytest

from capstan.cluster.eviction import why_not_ready
from capstan.cluster.rollout import judge


def item(spec, status, generation=2):
    return {"metadata": {"generation": generation}, "spec": spec, "status": {"observedGeneration": generation} | status}


def deployment(replicas=3, **status):
    return item({"replicas": replicas, "strategy": {"type": "RollingUpdate"}}, status)


ALL_NEW = {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}


@pytest.mark.parametrize(
    ("status", "done"),
    [
        (ALL_NEW, True),
        (ALL_NEW | {"updatedReplicas": 2}, False),
        (ALL_NEW | {"replicas": 4}, False),
        (ALL_NEW | {"availableReplicas": 2}, False),
        ({}, False),
    ],
)
def test_a_deployment_has_ended_when_all_are_new_no_old_is_left_and_all_are_available(status, done):
    assert judge("Deployment", deployment(**status)).done is done


def test_nothing_has_ended_before_the_controller_saw_the_new_template():
    stale = item({"replicas": 3}, ALL_NEW | {"observedGeneration": 1})
    assert not judge("Deployment", stale).done
    assert not judge("DaemonSet", stale).done


def test_a_deployment_past_its_progress_deadline_has_failed():
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "stuck"}
    state = judge("Deployment", deployment(**ALL_NEW, conditions=[condition]))
    assert state.failed
    assert "stuck" in state.message


def stateful_set(update=None, **status):
    return item({"replicas": 3, "updateStrategy": update or {"type": "RollingUpdate"}}, status)


REVISIONS = {"currentRevision": "b", "updateRevision": "b", "readyReplicas": 3, "updatedReplicas": 3}


@pytest.mark.parametrize(
    ("update", "status", "done"),
    [
        (None, REVISIONS, True),
        (None, REVISIONS | {"currentRevision": "a", "updatedReplicas": 1}, False),
        (None, REVISIONS | {"readyReplicas": 2}, False),
        ({"type": "OnDelete"}, REVISIONS | {"currentRevision": "a", "updatedReplicas": 0}, True),
        ({"type": "OnDelete"}, REVISIONS | {"readyReplicas": 1}, False),
        ({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}, REVISIONS | {"updatedReplicas": 1}, True),
        ({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}, REVISIONS | {"updatedReplicas": 1}, False),
    ],
)
def test_a_stateful_set_has_ended_when_the_revision_is_everywhere_it_is_wanted(update, status, done):
    assert judge("StatefulSet", stateful_set(update, **status)).done is done


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}, True),
        ({"desiredNumberScheduled": 3, "updatedNumberScheduled": 2, "numberAvailable": 3}, False),
        ({"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 2}, False),
    ],
)
def test_a_daemon_set_has_ended_when_every_node_runs_an_available_new_pod(status, done):
    assert judge("DaemonSet", item({"updateStrategy": {"type": "RollingUpdate"}}, status)).done is done


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "pod p: ImagePullBackOff: no such image",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                ],
            },
            "pod p: Unschedulable: 0/3 nodes",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk pressure"}, "pod p: Evicted: disk pressure"),
        ({"phase": "Pending"}, "pod p: Pending"),
    ],
)
def test_a_pod_that_is_not_ready_is_named_with_what_holds_it_up(status, expected):
    assert why_not_ready({"metadata": {"name": "p"}, "status": status}) == expected
