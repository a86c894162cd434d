"""PodSecurity admission: what a namespace's labels forbid, and what they warn of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from access_lab import Lab

PREFIX = "pod-security.kubernetes.io/"
MERGE = {"content-type": "application/merge-patch+json"}
PLAIN = (
    'allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), '
    'unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != '
    'true (pod or container "c" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "c" must '
    'set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")'
)
GOOD = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _namespace(lab: Lab, name: str, **modes: str) -> str:
    lab.namespace(name)
    labels = {f"{PREFIX}{mode}": level for mode, level in modes.items()}
    assert lab.admin.patch(f"/api/v1/namespaces/{name}", json={"metadata": {"labels": labels}}, headers=MERGE)
    return f"/api/v1/namespaces/{name}/pods"


def _pod(context: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "i", **({"securityContext": context} if context else {})}
    return {"metadata": {"name": "p"}, "spec": {"containers": [container], **spec}}


@pytest.mark.proves("api", "admission", "pod security: enforce and warn, baseline and restricted")
def test_a_restricted_namespace_takes_only_pods_that_say_what_they_do_without(lab: Lab) -> None:
    pods = _namespace(lab, "strict", enforce="restricted")
    refused = lab.admin.post(pods, json=_pod())
    assert refused.status_code == 403
    assert refused.json()["message"] == f'pods "p" is forbidden: violates PodSecurity "restricted:latest": {PLAIN}'
    assert lab.admin.post(pods, json=_pod(GOOD)).status_code == 201


def test_a_baseline_namespace_refuses_what_reaches_the_host(lab: Lab) -> None:
    pods = _namespace(lab, "base", enforce="baseline")
    volumes = [{"name": "v", "hostPath": {"path": "/"}}]
    context = {"privileged": True, "capabilities": {"add": ["NET_ADMIN", "KILL"]}}
    refused = lab.admin.post(pods, json=_pod(context, hostNetwork=True, volumes=volumes))
    assert refused.json()["message"] == (
        'pods "p" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities (container "c" must '
        'not include "NET_ADMIN" in securityContext.capabilities.add), host namespaces (hostNetwork=true), hostPath '
        'volumes (volume "v"), privileged (container "c" must not set securityContext.privileged=true)'
    )
    assert lab.admin.post(pods, json=_pod()).status_code == 201


def test_a_workload_is_taken_with_a_warning_about_its_pods(lab: Lab) -> None:
    _namespace(lab, "warned", enforce="restricted", warn="restricted")
    template = {"metadata": {"labels": {"a": "b"}}, "spec": _pod()["spec"]}
    body = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}
    answer = lab.admin.post("/apis/apps/v1/namespaces/warned/deployments", json=body)
    assert answer.status_code == 201
    shown = PLAIN.replace('"', '\\"')
    assert answer.headers["warning"] == f'299 - "would violate PodSecurity \\"restricted:latest\\": {shown}"'


def test_a_stricter_label_warns_of_pods_that_are_there_and_an_unknown_one_is_refused(lab: Lab) -> None:
    pods = _namespace(lab, "later")
    assert lab.admin.post(pods, json=_pod()).status_code == 201
    url = "/api/v1/namespaces/later"
    labels = {"metadata": {"labels": {f"{PREFIX}enforce": "restricted"}}}
    warned = lab.admin.patch(url, json=labels, headers=MERGE).headers.get_list("warning")
    assert warned[0].endswith(
        'existing pods in namespace \\"later\\" violate the new PodSecurity enforce level \\"restricted:latest\\""'
    )
    assert "p: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true" in warned[1]
    bad = {"metadata": {"labels": {f"{PREFIX}enforce": "bad"}}}
    refused = lab.admin.patch(url, json=bad, headers=MERGE)
    assert refused.status_code == 422
    assert refused.json()["message"] == (
        'Namespace "later" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "bad": must '
        "be one of privileged, baseline, restricted"
    )
