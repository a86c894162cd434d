"""Istio and the AKS add-on in an inventory: their deployments, when they start, and what is told of mistakes."""

from __future__ import annotations

import pytest

from deployments.entrypoints import FLOWS
from deployments.timetable import intermediates, timetable
from deployments.wanted import resolve, wanted
from tests.deployments.inventories import inventory, reading

ID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/aks"


def istio(more: str = "") -> str:
    return f"domains:\n  - {{name: mesh, system: istio{more}}}\n"


def aks(plugin_ca: str, more: str = "") -> str:
    return f"domains:\n  - {{name: mesh, system: aks-istio, clusters: [{{plugin_ca: {plugin_ca}}}]{more}}}\n"


def told(text: str) -> list[tuple[str, str, str]]:
    return [(problem.level, problem.field, problem.expected) for problem in reading(text).problems]


# --- what is deployed -----------------------------------------------------------------------------------------------


def test_every_flow_that_is_deployed_is_installed_under_its_name() -> None:
    for flows in FLOWS.values():
        assert resolve(flows.root).name == flows.root_name
        assert resolve(flows.intermediate).name == flows.intermediate_name
        for entrypoint in (flows.roll_back, flows.redate, flows.enable):
            assert not entrypoint or resolve(entrypoint)


def test_an_istio_gets_root_intermediate_way_back_and_redating() -> None:
    items = wanted(inventory(istio()))
    assert [item.key for item in items] == [
        "istio-root/mesh", "istio-intermediate/mesh", "istio-roll-back/mesh", "istio-redate/mesh", "radar/mesh",
        "sweep/fleet",
    ]  # fmt: skip
    assert [list(item.schedules) for item in items[:4]] == [["yearly"], [], [], []]
    assert items[0].parameters["domain"]["control_plane_namespace"] == "istio-system"
    assert "system:istio" in items[0].tags


def test_an_aks_add_on_gets_its_first_ca_by_hand_and_its_rotations_by_schedule() -> None:
    items = wanted(inventory(aks(f'{{cluster_id: "{ID}"}}', ", schedule_intermediate: {}")))
    assert [item.key for item in items] == [
        "aks-istio-root/mesh", "aks-istio-intermediate/mesh", "aks-istio-roll-back/mesh", "aks-istio-enable/mesh",
        "radar/mesh", "sweep/fleet",
    ]  # fmt: skip
    assert [list(item.schedules) for item in items[:4]] == [["yearly"], ["yearly"], [], []]
    (cluster,) = items[0].parameters["domain"]["clusters"]
    assert cluster["plugin_ca"]["cluster_id"] == ID


def test_a_linkerd_gets_its_issuer_by_hand_unless_a_schedule_is_asked_for() -> None:
    items = wanted(
        inventory(
            "domains:\n  - {name: mesh, schedule_intermediate: {}}\n  - {name: other, clusters: [{context: other}]}\n"
        )
    )
    issuers = [item for item in items if item.flow == "linkerd-issuer"]
    assert [(item.key, list(item.schedules)) for item in issuers] == [
        ("linkerd-issuer/mesh", ["yearly"]), ("linkerd-issuer/other", []),
    ]  # fmt: skip
    assert "Rotates the issuer of trust domain **mesh**" in issuers[0].description
    assert "Nobody's roots change" in issuers[0].description


def test_a_page_says_whose_mesh_it_is_and_that_the_root_is_offline() -> None:
    items = wanted(inventory(istio(", policy: {offline_root: true}")))
    assert "Istio in `cluster`" in items[0].description
    assert "capstan sign" in items[0].description
    assert "istio-roll-back/mesh" in items[0].description
    assert "Nobody's roots change" in items[1].description


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("week", "expected"), [(3, 29), (20, 46), (26, 52), (40, 14)])
def test_an_intermediate_comes_half_a_year_after_the_root(week: int, expected: int) -> None:
    text = "  weeks: {first: 1, last: 52}\n" + istio(f", schedule: {{week: {week}}}, schedule_intermediate: {{}}")
    found = inventory(text)
    half = intermediates(found, timetable(found))["mesh"]
    assert (half.week, half.how) == (expected, "spread")


def test_an_intermediate_stays_out_of_the_weeks_that_are_kept_free() -> None:
    text = "  weeks: {first: 10, last: 30}\n" + istio(", schedule: {week: 12}, schedule_intermediate: {}")
    found = inventory(text)
    assert intermediates(found, timetable(found))["mesh"].week == 30


def test_nobody_gets_a_schedule_of_the_intermediate_who_did_not_ask_for_one() -> None:
    for text in (istio(), istio(", schedule_intermediate: {}, enabled: false")):
        found = inventory(text)
        assert intermediates(found, timetable(found)) == {}


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("domains: [{name: a, system: aks-istio}]\n", "domains[0]", "plugin_ca with cluster_id"),
        (aks("{}"), "domains[0].clusters[0].plugin_ca", "plugin_ca with cluster_id"),
        (aks("{cluster_id: aks}"), "domains[0].clusters[0].plugin_ca.cluster_id", "/subscriptions/ID"),
        (aks("{key_vault: vault}"), "domains[0].clusters[0].plugin_ca.key_vault", "https://NAME.vault.azure.net"),
        (aks('{key_vault: "https://v.vault.azure.net", ca_key: ca_key}'), "domains[0].clusters[0].plugin_ca.ca_key",
         "1 to 127 letters"),
        (aks('{key_vault: "https://v.vault.azure.net", ca_key: ca-cert}'), "domains[0].clusters[0].plugin_ca",
         "four secrets of their own"),
        ("domains:\n  - {name: a, clusters: [{plugin_ca: {}}]}\n", "domains[0].clusters[0].plugin_ca",
         "system: aks-istio"),
        (istio(', schedule: {cron: "0 3 * 3 sat#2"}, schedule_intermediate: {}'), "domains[0].schedule_intermediate",
         "a week, date or cron of its own"),
        (istio(", schedule_intermediate: {date: 03-15}"), "domains[0].schedule_intermediate.date", "a week"),
        (istio(', schedule_intermediate: {cron: "0 12 * 9 sat#2"}'), "domains[0].schedule_intermediate.cron",
         "starts inside the window"),
        (istio(", schedule_intermediate: {cron: soon}"), "domains[0].schedule_intermediate.cron", "a cron expression"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_field(text: str, field: str, expected: str) -> None:
    found = [problem for problem in told(text) if problem[0] == "error"]
    assert [(level, where) for level, where, _ in found if where.startswith(field)], found
    assert any(expected in what for _, where, what in found if where.startswith(field)), found


def test_two_clusters_may_not_share_one_intermediate() -> None:
    vault = 'plugin_ca: {key_vault: "https://v.vault.azure.net"}'
    text = (
        "domains:\n"
        f"  - {{name: a, system: aks-istio, clusters: [{{name: x, context: x, {vault}}}]}}\n"
        f"  - {{name: b, system: aks-istio, clusters: [{{name: y, context: y, {vault}}}]}}\n"
    )
    assert ("error", "domains[1].clusters[0].plugin_ca", "secrets of its own for each cluster") in told(text)
    apart = text.replace('azure.net"}}]}\n  - {name: b', 'azure.net", ca_key: k}}]}\n  - {name: b')
    assert not [problem for problem in told(apart) if problem[0] == "error"]


def test_an_intermediate_too_close_to_the_root_is_a_warning() -> None:
    found = told(istio(", schedule: {week: 10}, schedule_intermediate: {week: 12}"))
    assert found == [("warning", "domains[0].schedule_intermediate.week", "at least 4 weeks from it")]
