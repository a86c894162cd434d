"""The Terraform configuration, as far as it can be judged without the provider: its plug-in is not downloaded here.

Terraform itself checks the format, the variables with their validation rules, and the locals. Arguments are compared
with the provider's documentation (hashicorp/azurerm 4.50 to 5.12, website/docs/r), which is transcribed below: that
this transcription is right, and that Azure accepts the values, is not proven by any test.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.manifests import KUBERNETES, ROOT, resources

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY = ROOT / "infra" / "terraform"
FILES = {file.name: file.read_text() for file in sorted(DIRECTORY.glob("*.tf"))}
EVERYTHING = "\n".join(FILES.values())
terraform_is_here = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not on PATH")

META = {"for_each", "count", "lifecycle", "depends_on"}
# Resource type -> required and optional arguments (blocks in angle brackets), from the provider's documentation.
DOCUMENTED: dict[str, tuple[str, str]] = {
    "azurerm_key_vault": (
        "name location resource_group_name sku_name tenant_id rbac_authorization_enabled",
        "purge_protection_enabled soft_delete_retention_days public_network_access_enabled network_acls tags "
        "enabled_for_deployment enabled_for_disk_encryption enabled_for_template_deployment access_policy",
    ),
    "azurerm_key_vault/network_acls": ("bypass default_action", "ip_rules virtual_network_subnet_ids"),
    "azurerm_user_assigned_identity": ("name location resource_group_name", "tags isolation_scope"),
    "azurerm_federated_identity_credential": ("name audience issuer subject user_assigned_identity_id", ""),
    "azurerm_role_assignment": (
        "scope principal_id",
        "name role_definition_id role_definition_name principal_type condition condition_version description "
        "delegated_managed_identity_resource_id skip_service_principal_aad_check",
    ),
    "azurerm_monitor_diagnostic_setting": (
        "name target_resource_id",
        "log_analytics_workspace_id enabled_log enabled_metric storage_account_id eventhub_name "
        "eventhub_authorization_rule_id log_analytics_destination_type partner_solution_id",
    ),
    "azurerm_monitor_diagnostic_setting/enabled_log": ("", "category category_group"),
    "data.azurerm_client_config": ("", ""),
    "data.azurerm_resource_group": ("name", ""),
}
# Attributes that are read from resources besides their arguments.
EXPORTED = {
    "azurerm_key_vault": {"id", "vault_uri"},
    "azurerm_user_assigned_identity": {"id", "principal_id", "client_id", "tenant_id"},
    "data.azurerm_client_config": {"tenant_id", "object_id", "client_id", "subscription_id"},
    "data.azurerm_resource_group": {"id", "location", "name", "tags"},
}


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(directory), "CHECKPOINT_DISABLE": "1"}
    return subprocess.run(
        ["terraform", f"-chdir={directory}", *arguments, "-no-color"],
        env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def blocks(text: str, pattern: str) -> list[tuple[tuple[str, ...], str]]:
    """Blocks whose header matches, with their bodies; in the canonical format a `}` in the header's column ends one."""
    found = []
    for match in re.finditer(rf"^( *){pattern} \{{(?:\}}|\n(.*?)\n\1\}})$", text, re.MULTILINE | re.DOTALL):
        *names, body = match.groups()[1:]
        found.append((tuple(names), body or ""))
    return found


def assigned(body: str) -> set[str]:
    """Names of arguments and nested blocks at a body's first level."""
    indents = [len(line) - len(line.lstrip()) for line in body.splitlines() if line.strip()]
    level = " " * min(indents, default=0)
    return set(re.findall(rf"^{level}(\w+)(?: *=| \{{)", body, re.MULTILINE))


def declared() -> dict[str, str]:
    """`azurerm_key_vault.capstan` -> body, data sources with their prefix."""
    found = {f"{kind}.{name}": body for (kind, name), body in blocks(EVERYTHING, r'resource "(\w+)" "(\w+)"')}
    return found | {f"data.{kind}.{name}": body for (kind, name), body in blocks(EVERYTHING, r'data "(\w+)" "(\w+)"')}


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    """A configuration of the variables, the locals and the example alone: Terraform evaluates it without a provider."""
    (tmp_path / "variables.tf").write_text(FILES["variables.tf"])
    (tmp_path / "example.tfvars").write_text((DIRECTORY / "example.tfvars").read_text())
    ((_, body),) = blocks(FILES["main.tf"], "locals")
    outputs = "".join(f'output "{name}" {{\n  value = local.{name}\n}}\n' for name in ("roles", "federations"))
    (tmp_path / "main.tf").write_text(f"locals {{\n{body}\n}}\n{outputs}")
    assert run(tmp_path, "init").returncode == 0
    return tmp_path


@terraform_is_here
def test_the_files_are_in_terraforms_own_format() -> None:
    done = run(DIRECTORY, "fmt", "-check", "-diff", "-recursive")
    assert done.returncode == 0, done.stdout


@terraform_is_here
def test_the_example_is_valid_and_federates_each_account_with_each_cluster(variables: Path) -> None:
    more = '{"ops":"https://one.example/","east":"https://two.example/"}'
    done = run(variables, "apply", "-input=false", "-auto-approve", "-var-file=example.tfvars", f"-var=clusters={more}")
    assert done.returncode == 0, done.stderr
    outputs = {name: entry["value"] for name, entry in json.loads(run(variables, "output", "-json").stdout).items()}
    assert set(outputs["federations"]) == {
        "capstan-rotator/ops", "capstan-rotator/east", "capstan-reader/ops", "capstan-reader/east",
    }  # fmt: skip
    assert outputs["federations"]["capstan-reader/east"] == {"account": "capstan-reader", "cluster": "east"}
    assert outputs["roles"] == {
        "capstan-rotator": "Key Vault Secrets Officer", "capstan-reader": "Key Vault Reader",
    }  # fmt: skip


@terraform_is_here
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("subscription_id", "mine"),
        ("resource_group_name", "ends-with-a-dot."),
        ("key_vault_name", "1kv"),
        ("key_vault_name", "kv--capstan"),
        ("key_vault_name", "a-name-of-twenty-five-chrs"),
        ("name_prefix", "-capstan"),
        ("clusters", "{}"),
        ("clusters", '{"ops":"http://issuer.example/"}'),
        ("clusters", '{"o p s":"https://issuer.example/"}'),
        ("kubernetes_namespace", "Capstan"),
        ("sku_name", "free"),
        ("soft_delete_retention_days", "6"),
        ("allowed_ip_ranges", '["0.0.0.0/0"]'),
        ("allowed_ip_ranges", '["somewhere"]'),
        ("allowed_ip_ranges", '["2001:db8::1"]'),
        ("allowed_subnet_ids", '["nodes"]'),
        ("log_analytics_workspace_id", "logs"),
    ],
)
def test_a_bad_value_is_refused_by_a_rule_of_its_variable(variables: Path, variable: str, value: str) -> None:
    done = run(variables, "plan", "-input=false", "-var-file=example.tfvars", f"-var={variable}={value}")
    assert done.returncode == 1
    assert "Invalid value for variable" in done.stderr
    assert re.search(rf"├─+\n\s+│ var\.{variable} is ", done.stderr), done.stderr


def test_every_variable_is_described_and_used_and_every_one_used_is_declared() -> None:
    found = {name: body for (name,), body in blocks(FILES["variables.tf"], r'variable "(\w+)"')}
    for name, body in found.items():
        assert {"description", "type"} <= assigned(body), name
    elsewhere = "\n".join(text for name, text in FILES.items() if name != "variables.tf")
    assert set(re.findall(r"\bvar\.(\w+)", elsewhere)) == set(found)


def test_every_required_variable_is_in_the_example_and_nothing_else_is() -> None:
    found = {name: body for (name,), body in blocks(FILES["variables.tf"], r'variable "(\w+)"')}
    example = assigned((DIRECTORY / "example.tfvars").read_text())
    assert {name for name, body in found.items() if "default" not in assigned(body)} <= example <= set(found)


def test_resources_have_their_required_arguments_and_only_documented_ones() -> None:
    assert {name.rpartition(".")[0] for name in declared()} == {kind for kind in DOCUMENTED if "/" not in kind}
    for name, body in declared().items():
        kind = name.rpartition(".")[0]
        required, optional = (set(names.split()) for names in DOCUMENTED[kind])
        given = assigned(body)
        assert required <= given, name
        assert given <= required | optional | META, name
        for nested in given & {key.partition("/")[2] for key in DOCUMENTED if key.startswith(f"{kind}/")}:
            ((_, inner),) = blocks(body, nested)
            needed, allowed = (set(names.split()) for names in DOCUMENTED[f"{kind}/{nested}"])
            assert needed <= assigned(inner) <= needed | allowed, f"{name} {nested}"


def test_every_reference_is_to_something_declared_and_an_attribute_it_has() -> None:
    references = re.findall(r"(?<![\w.])((?:data\.)?azurerm_\w+)\.(\w+)(?:\[[^\]]+\])?(?:\.(\w+))?", EVERYTHING)
    assert len(references) > 8
    for kind, name, attribute in references:
        assert f"{kind}.{name}" in declared()
        assert not attribute or attribute in EXPORTED[kind], f"{kind}.{attribute}"
    bodies = dict(blocks(EVERYTHING, "locals"))
    assert set(re.findall(r"\blocal\.(\w+)", EVERYTHING)) == assigned(bodies[()])


def test_outputs_are_described() -> None:
    outputs = {name: body for (name,), body in blocks(FILES["outputs.tf"], r'output "(\w+)"')}
    assert {"vault_uri", "client_ids"} <= set(outputs)
    assert all({"description", "value"} <= assigned(body) for body in outputs.values())


def test_the_vault_denies_by_default_and_cannot_be_purged() -> None:
    vault = declared()["azurerm_key_vault.capstan"]
    for setting in (
        r"rbac_authorization_enabled = true", r"purge_protection_enabled\s+= true", r'default_action\s+= "Deny"',
        r'bypass\s+= "None"', r"prevent_destroy = true",
    ):  # fmt: skip
        assert re.search(setting, vault), setting
    assert "access_policy" not in vault


def test_roles_are_given_on_the_vault_alone_and_to_the_accounts_of_the_manifests() -> None:
    assignments = [body for name, body in declared().items() if name.startswith("azurerm_role_assignment.")]
    assert [re.findall(r"scope\s+= (\S+)", body) for body in assignments] == [["azurerm_key_vault.capstan.id"]]
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in resources(KUBERNETES / "cluster")
        if item["kind"] == "ServiceAccount"
    }
    ((_, locals_body),) = blocks(FILES["main.tf"], "locals")
    named = set(re.findall(r'^ +(capstan-\w+)\s+= "', locals_body, re.MULTILINE))
    ((_, namespace),) = blocks(FILES["variables.tf"], r'variable "kubernetes_namespace"')
    (default,) = re.findall(r'default\s+= "(\w+)"', namespace)
    assert {(default, name) for name in named} == accounts
