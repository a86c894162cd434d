"""Which flow the radar tells people to launch."""

from __future__ import annotations

import pytest

from capstan.config import System, TrustDomain
from capstan.rotation.expiry import Finding, Level
from deployments.entrypoints import FLOWS
from flows.radar import cure


def domain(system: System) -> TrustDomain:
    plugin_ca = {"key_vault": "https://v.vault.azure.net"} if system is System.AKS_ISTIO else None
    return TrustDomain.model_validate({"name": "mesh", "system": system, "clusters": [{"plugin_ca": plugin_ca}]})


def ending(kind: str) -> Finding:
    return Finding(kind, "cluster", "name", Level.CRITICAL, None, "ends soon")


@pytest.mark.parametrize("system", list(System))
def test_an_issuer_that_ends_alone_is_cured_by_its_own_flow_and_a_root_by_the_roots(system: System) -> None:
    flows = FLOWS[system]
    assert cure(domain(system), [ending("issuer"), ending("check")]) == flows.intermediate_name
    assert cure(domain(system), [ending("root"), ending("issuer")]) == flows.root_name
    assert cure(domain(system), [ending("check")]) == flows.root_name
