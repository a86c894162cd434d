"""Istio before istiod: Citadel's root gets a new end, and every workload Secret and sidecar follows."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from capstan.pki.bundle import Bundle
from tests.rotation_istio.conftest import mesh
from tests.rotation_istio.meshes import Turned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

# Leaves of that age live for 90 days: what makes Citadel rewrite a Secret here is its root alone.
LAB = ("--system", "istio", "--ca", "citadel", "--leaf-seconds", "3600")


def roots_of(secret: dict[str, dict[str, str]], key: str) -> frozenset[str]:
    return Bundle.parse_lenient(base64.b64decode(secret["data"][key]).decode(), key).fingerprints


def caught_up(case: Turned, root: str) -> bool:
    """Whether the API server trusts the injector by this root, as the injector itself has written."""
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/istio-sidecar-injector"
    (hook,) = case.lab.call("GET", path)["webhooks"]
    text = base64.b64decode(hook["clientConfig"]["caBundle"]).decode()
    return Bundle.parse_lenient(text, "caBundle").fingerprints == frozenset({root})


def test_a_root_gets_a_new_end_and_no_workload_keeps_the_old_certificate(
    tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, *LAB) as (running, runner):
        case = Turned(running, runner, tmp_path / "home", "case-1", system="istio")
        case.begin()
        (before,) = roots_of(case.secret("istio-ca-secret"), "ca-cert.pem")
        ran = runner.run(
            "istio", "transition", "--rotation", case.rotation, "--approve", "auto", "-o", "json",
            home=case.home, kubeconfig=running.kubeconfig,
        )  # fmt: skip
        assert ran.code == 0, ran.stderr[-3000:]
        (after,) = roots_of(case.secret("istio-ca-secret"), "ca-cert.pem")
        assert after != before
        secrets = running.call("GET", "/api/v1/secrets?fieldSelector=type%3Distio.io%2Fkey-and-cert")["items"]
        assert secrets
        assert {roots_of(secret, "root-cert.pem") for secret in secrets} == {frozenset({after})}
        assert case.live_roots() == {after}
        assert caught_up(case, after), "the next pod could not be injected"
        case.require_no_failure()
