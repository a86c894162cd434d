"""A mistake in an inventory is told with its line and its field, and all mistakes at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capstan.cli import app
from capstan.errors import InvalidInput
from deployments.reading import load, read
from tests.deployments.inventories import domains, reading

ANN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKcahB0FW0EkTIxFiaGefa7Po1frzOyjlEUbOIqelabd"
EXAMPLE = Path(__file__).parents[2] / "deployments" / "example.yaml"


def told(text: str, head: str | None = None) -> list[tuple[str, int, str, str]]:
    found = reading(text) if head is None else reading(text, head)
    return [(problem.level, problem.line, problem.field, problem.expected) for problem in found.problems]


def test_the_example_has_no_problems() -> None:
    found = read(EXAMPLE)
    assert found.problems == ()
    assert found.inventory is not None
    assert [entry.name for entry in found.inventory.domains] == [
        "prod-eu",
        "prod-us",
        "staging",
        "shop-istio",
        "shop-aks",
    ]


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("nonsense\n", "", "a mapping of fields: schemaVersion, "),
        ("schemaVersion: 1\nname: x\ndomains: {a: 1}\n", "domains", "a list"),
        ("schemaVersion: 1\nname: x\ndomains: [a]\n", "domains[0]", "a mapping of fields: "),
    ],
    ids=["file", "list", "entry"],
)
def test_what_has_another_shape_is_told_in_words_of_the_file(text: str, field: str, expected: str) -> None:
    problem = reading(text, head="").errors[0]
    assert problem.field == field
    assert problem.expected.startswith(expected)


def test_every_mistake_is_told_at_once_with_line_column_and_field() -> None:
    text = """\
schemaVersion: 1
defaults:
  time_zone: Europe/Berln
  polcy: {}
domains:
  - name: Prod_EU
    policy: {quorum: 0, approvals: []}
    schedule: {week: 60}
  - clusters: []
"""
    found = reading(text, head="")
    assert found.inventory is None
    assert [(p.line, p.column, p.field) for p in found.problems] == [
        (3, 3, "defaults.time_zone"),
        (4, 3, "defaults.polcy"),
        (6, 5, "domains[0].name"),
        (7, 14, "domains[0].policy.quorum"),
        (7, 25, "domains[0].policy.approvals"),
        (8, 16, "domains[0].schedule.week"),
        (9, 5, "domains[1].clusters"),
        (9, 5, "domains[1].name"),
    ]
    given = {problem.field: (problem.given, problem.expected) for problem in found.problems}
    assert given["defaults.time_zone"] == (
        '"Europe/Berln"', "a time zone of the IANA database, such as Europe/Berlin or UTC",
    )  # fmt: skip
    assert given["domains[0].policy.quorum"] == ("0", "greater than or equal to 1")
    assert given["domains[1].name"] == ("nothing", "a value: this field is required")


def test_a_mistyped_field_is_told_with_the_one_that_was_meant() -> None:
    ((_, _, field, expected),) = told("domains:\n  - {name: a, vaultt: x}\n")
    assert field == "domains[0].vaultt"
    assert expected == "vault, perhaps"
    ((_, _, _, expected),) = told("domains:\n  - {name: a, zzz: x}\n")
    assert expected.startswith("one of name, system, clusters,")


@pytest.mark.parametrize(
    ("text", "line", "given"),
    [
        ("a: [1", 1, "expected ',' or ']'"),
        ("a: 1\n\tb: 2", 2, "cannot start any token"),
        ("a: \x07", 1, "special characters are not allowed"),
        ("a: *nobody", 1, "undefined alias"),
        ("", 1, "nothing"),
        ("- 1", 1, "a list of 1"),
        ("schemaVersion: 1\n? [x]\n: 1\n", 2, "a list or mapping as a key"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_told_where(text: str, line: int, given: str) -> None:
    found = reading(text, head="")
    assert found.inventory is None
    assert (found.problems[0].line, given in found.problems[0].given) == (line, True)


def test_a_key_given_twice_is_told_with_both_lines() -> None:
    (problem,) = reading("domains:\n  - name: a\n    vault: x\n    vault: y\n").problems
    assert (problem.line, problem.field) == (9, "domains[0].vault")
    assert problem.given == "'vault' for the second time, after line 8"


def test_an_anchor_that_contains_itself_is_told_and_does_not_hang() -> None:
    found = reading("domains:\n  - name: a\n    job_variables: &loop {again: *loop}\n")
    assert [problem.given for problem in found.errors] == ["a value that contains itself"]


def test_anchors_and_merge_keys_are_read() -> None:
    found = reading(
        "domains:\n  - &one {name: a, vault: x, clusters: [{context: a}]}\n"
        "  - {<<: *one, name: b, clusters: [{context: b}]}\n"
    )
    assert found.inventory is not None
    assert [(entry.name, entry.vault) for entry in found.inventory.domains] == [("a", "x"), ("b", "x")]


def test_the_url_of_a_webhook_never_shows_in_an_error() -> None:
    found = reading("notifications: {webhook: {url: 'ftp://hook.example/s3cret'}}\n" + domains("a"))
    assert [problem.field for problem in found.problems] == ["notifications.webhook.url"]
    assert "s3cret" not in str(found.problems)


class TestWhatNoSingleFieldShows:
    def test_two_domains_of_one_name(self) -> None:
        text = "domains:\n  - {name: a, clusters: [{context: x}]}\n  - {name: a, clusters: [{context: y}]}\n"
        assert told(text) == [("error", 8, "domains[1].name", "each domain once")]

    def test_two_domains_on_one_control_plane(self) -> None:
        text = "domains:\n  - {name: a, clusters: [{context: x}]}\n  - {name: b, clusters: [{context: x}]}\n"
        assert told(text) == [("error", 8, "domains[1].clusters[0]", "each control plane in one domain")]

    def test_two_control_planes_on_one_cluster_may_be_two_domains(self) -> None:
        text = (
            "domains:\n  - {name: a, clusters: [{context: x}]}\n"
            "  - {name: b, clusters: [{context: x}], control_plane_namespace: mesh-2}\n"
        )
        assert reading(text).errors == ()

    def test_one_context_in_two_pools_is_a_warning_only(self) -> None:
        text = (
            "work_pools: [{name: capstan}, {name: other}]\ndomains:\n  - {name: a}\n  - {name: b, work_pool: other}\n"
        )
        assert [(p.level, p.line) for p in reading(text).problems] == [("warning", 9)]

    def test_a_cluster_twice_in_one_domain(self) -> None:
        text = "domains:\n  - {name: a, clusters: [{name: x, context: x}, {name: y, context: x}]}\n"
        assert told(text) == [("error", 7, "domains[0].clusters[1]", "each cluster once")]

    def test_a_pool_that_is_not_listed(self) -> None:
        text = domains("a", more=", work_pool: elsewhere")
        assert told(text) == [("error", 7, "domains[0].work_pool", "one of work_pools: capstan")]

    def test_a_window_shorter_than_one_restart(self) -> None:
        text = domains("a", more=', maintenance_window: {start: "03:00", end: "03:20"}')
        ((level, _, field, expected),) = told(text)
        assert (level, field) == ("error", "domains[0].maintenance_window")
        assert expected == "at least restart_deadline, 30 minutes: one restart would outlast it"

    def test_a_schedule_outside_the_window(self) -> None:
        found = reading(domains("a", more=', schedule: {cron: "0 3 1 3 *"}'))
        (problem,) = found.errors
        assert problem.field == "domains[0].schedule.cron"
        assert problem.given.startswith("a start at Sun 2026-03-01 03:00")

    def test_a_cron_expression_that_is_none(self) -> None:
        ((_, _, field, expected),) = told(domains("a", more=", schedule: {cron: often}"))
        assert (field, expected) == ("domains[0].schedule.cron", 'a cron expression, such as "0 3 * 3 sat#2"')

    def test_a_fixed_date_in_a_window_of_some_weekdays(self) -> None:
        (problem,) = reading(domains("a", more=', schedule: {date: "03-15"}')).errors
        assert problem.given == '"03-15", which falls on every day of the week in turn'

    def test_a_start_that_the_change_of_the_clocks_skips(self) -> None:
        window = ', maintenance_window: {days: [sunday], start: "02:00", end: "05:00"}, schedule: {week: 12}'
        (problem,) = reading(domains("a", more=window)).errors
        assert problem.given == "week 12: 02:00 does not exist on 2027-03-28 in Europe/Berlin"

    @pytest.mark.parametrize(("days", "right"), [(400, False), (401, True)])
    def test_an_issuer_that_would_expire_before_the_next_rotation_has_replaced_it(self, days: int, right: bool) -> None:
        found = reading(domains("a", more=f", policy: {{issuer_validity: P{days}D}}"))
        assert [problem.field for problem in found.errors] == ([] if right else ["domains[0].policy.issuer_validity"])

    def test_a_quorum_that_no_number_of_approvers_reaches(self) -> None:
        approvers = f", policy: {{quorum: 2, approvers: [{{name: ann, key: {ANN}}}]}}"
        (problem,) = reading(domains("a", more=approvers)).errors
        assert (problem.field, problem.expected) == (
            "domains[0].policy.quorum", "at most the 1 different people listed",
        )  # fmt: skip
        assert [p.field for p in reading(domains("a", more=", policy: {quorum: 2}")).errors] == [
            "domains[0].policy.quorum"
        ]

    def test_a_window_in_the_policy_which_would_not_move_the_schedule(self) -> None:
        found = reading(domains("a", "b", more=", policy: {time_zone: UTC}"))
        assert [p.field for p in found.errors] == ["domains[0].policy.time_zone", "domains[1].policy.time_zone"]

    def test_an_approvers_key_that_is_none(self) -> None:
        approvers = f", policy: {{approvers: [{{name: ann, key: {ANN}}}, {{name: bob, key: nonsense}}]}}"
        (problem,) = reading(domains("a", more=approvers)).errors
        assert problem.field == "domains[0].policy.approvers[1].key"
        assert problem.expected == "one line of an OpenSSH .pub file, or a PEM certificate"

    def test_a_local_vault_where_pods_come_and_go_is_a_warning(self) -> None:
        text = "work_pools: [{name: capstan, type: kubernetes, base_job_template: t.json}]\n" + domains("a")
        ((level, _, _, expected),) = told(text)
        assert (level, expected.split(":")[0]) == ("warning", "https")

    def test_more_domains_than_weeks_is_a_warning_that_names_who_share_one(self) -> None:
        head = (
            'schemaVersion: 1\ndefaults:\n  maintenance_window: {days: [monday], start: "09:00", end: "12:00"}\n'
            "  weeks: {first: 10, last: 11}\n"
        )
        found = reading(domains("a", "b", "c"), head)
        assert [(p.level, p.expected.split(":")[0]) for p in found.problems] == [("warning", "a week of its own")]

    def test_rotations_of_one_cluster_close_together_are_a_warning(self) -> None:
        text = (
            "domains:\n  - {name: a, clusters: [{context: x}], schedule: {week: 20}}\n"
            "  - {name: b, clusters: [{context: x}], control_plane_namespace: two, schedule: {week: 22}}\n"
        )
        (problem,) = reading(text).problems
        assert (problem.level, problem.given) == ("warning", "week 22, 2 from domain a on one cluster")


def test_loading_a_broken_inventory_raises_one_error_with_the_first_place(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("schemaVersion: 1\ndomains:\n  - {name: A}\n  - {name: B}\n")
    with pytest.raises(InvalidInput) as caught:
        load(file)
    assert caught.value.where == f"{file}:3:6"
    assert caught.value.what == "the inventory has 2 errors"
    assert caught.value.next_command == f"capstan inventory validate {file}"


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the inventory cannot be read"):
        load(tmp_path / "none.yaml")


def test_validate_exits_1_on_an_error_and_0_on_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("schemaVersion: 1\ndomains:\n  - {name: A}\n")
    command = ["inventory", "validate", str(file), "-o", "json"]
    assert app(command, exit_on_error=False, result_action="return_value") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [(p["line"], p["field"]) for p in problems] == [(3, "domains[0].name")]
    file.write_text("schemaVersion: 1\nwork_pools: [{name: capstan}, {name: b}]\ndomains:\n"
                    "  - {name: a}\n  - {name: b, work_pool: b}\n")  # fmt: skip
    assert app(command, exit_on_error=False, result_action="return_value") == 0
    assert [p["level"] for p in json.loads(capsys.readouterr().out)["problems"]] == ["warning"]


def test_the_schema_for_editors_knows_the_fields_of_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    app(["inventory", "schema"], exit_on_error=False, result_action="return_value")
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"schemaVersion", "defaults", "domains", "work_pools", "sweep", "radar"} <= schema["properties"].keys()
    assert set(schema["required"]) == {"schemaVersion", "domains"}
