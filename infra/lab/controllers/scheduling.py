"""Where a pod may run. Pure rules shared by the scheduler and the DaemonSet controller.

Rules: https://kubernetes.io/docs/concepts/scheduling-eviction/ (node selection, affinity, taints and tolerations).
"""

from __future__ import annotations

from typing import Any

from infra.lab.controllers.framework import selects

JSON = dict[str, Any]

SELECTOR = "node(s) didn't match Pod's node affinity/selector"
UNSCHEDULABLE = "node(s) were unschedulable"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
AFFINITY = "node(s) didn't match pod affinity rules"
FULL = "Too many pods"


def selected(pod: JSON, node: JSON) -> bool:
    """nodeSelector and required node affinity allow the node."""
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(k) != v for k, v in wanted.items()):
        return False
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if affinity is None:
        return True
    return any(_term(term, node) for term in affinity.get("nodeSelectorTerms") or [])


def _term(term: JSON, node: JSON) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False  # an empty term selects no node
    labels = node["metadata"].get("labels") or {}
    return all(_expression(e, labels) for e in expressions) and all(
        _expression(f, {"metadata.name": node["metadata"]["name"]}) for f in fields
    )


def _expression(rule: JSON, labels: dict[str, str]) -> bool:
    if rule["operator"] in ("Gt", "Lt"):
        value, bound = labels.get(rule["key"], ""), (rule.get("values") or ["0"])[0]
        if not value.lstrip("-").isdigit():
            return False
        return int(value) > int(bound) if rule["operator"] == "Gt" else int(value) < int(bound)
    return selects({"matchExpressions": [rule]}, labels)


def tolerates(pod: JSON, taint: JSON) -> bool:
    """One of the pod's tolerations covers the taint."""
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("operator") == "Exists":
            if toleration.get("key") in (None, "", taint["key"]):
                return True
        elif toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def untolerated(pod: JSON, node: JSON, effects: tuple[str, ...] = ("NoSchedule", "NoExecute")) -> JSON | None:
    """The first taint with one of these effects that keeps the pod away."""
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] in effects and not tolerates(pod, taint):
            found: JSON = taint
            return found
    return None


def obstacle(pod: JSON, node: JSON, neighbours: dict[str, list[JSON]], nodes: dict[str, JSON]) -> str | None:
    """Why the node cannot take the pod, in the scheduler's words; None if it can. `neighbours`: node name -> pods
    there.
    """
    name = node["metadata"]["name"]
    if node["spec"].get("unschedulable") and not tolerates(
        pod, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    ):
        return UNSCHEDULABLE
    if not selected(pod, node):
        return SELECTOR
    taint = untolerated(pod, node)
    if taint is not None:
        value = f": {taint['value']}" if taint.get("value") else ": "
        return f"node(s) had untolerated taint {{{taint['key']}{value}}}"
    if len(neighbours.get(name, [])) >= _capacity(node):
        return FULL
    affinity = pod["spec"].get("affinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    for rule in (affinity.get("podAntiAffinity") or {}).get(required) or []:
        if _near(rule, pod, node, neighbours, nodes):
            return ANTI_AFFINITY
    for rule in (affinity.get("podAffinity") or {}).get(required) or []:
        alone = selects(rule.get("labelSelector"), pod["metadata"].get("labels"))  # the first of a group may start it
        anywhere = any(_matches(rule, pod, other) for others in neighbours.values() for other in others)
        if not _near(rule, pod, node, neighbours, nodes) and not (alone and not anywhere):
            return AFFINITY
    return None


def _near(rule: JSON, pod: JSON, node: JSON, neighbours: dict[str, list[JSON]], nodes: dict[str, JSON]) -> bool:
    key = rule["topologyKey"]
    here = (node["metadata"].get("labels") or {}).get(key)
    for name, others in neighbours.items():
        there = (nodes[name]["metadata"].get("labels") or {}).get(key) if name in nodes else None
        if here is not None and there == here and any(_matches(rule, pod, other) for other in others):
            return True
    return False


def _matches(rule: JSON, pod: JSON, other: JSON) -> bool:
    namespaces = rule.get("namespaces") or [pod["metadata"]["namespace"]]
    return other["metadata"]["namespace"] in namespaces and selects(
        rule.get("labelSelector"), other["metadata"].get("labels")
    )


def _capacity(node: JSON) -> int:
    text = str(((node.get("status") or {}).get("allocatable") or {}).get("pods", "110"))
    return int(float(text.rstrip("k")) * 1000) if text.endswith("k") else int(text)
