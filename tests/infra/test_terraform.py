"""The Terraform configuration, as far as it can be judged without the provider: its plug-in is not downloaded here.

Terraform itself checks the format, the variables with their validation rules, and the locals; and, with a plug-in that
knows the documented schema only (`azurerm_schema.py`), every argument, type and reference. That the real plug-in and
Azure accept the values is proven by no test.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.manifests import KUBERNETES, ROOT, resources

DIRECTORY = ROOT / "infra" / "terraform"
FILES = {file.name: file.read_text() for file in sorted(DIRECTORY.glob("*.tf"))}
EVERYTHING = "\n".join(FILES.values())
terraform_is_here = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not on PATH")


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(directory),
        "CHECKPOINT_DISABLE": "1",
        **variables,
    }
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


def validate(directory: Path) -> subprocess.CompletedProcess[str]:
    """`terraform validate` of the *.tf files there, with the plug-in that stands for hashicorp/azurerm."""
    plugin = directory / "plugins" / "terraform-provider-azurerm"
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name('azurerm_schema.py')}\n")
    plugin.chmod(0o755)
    settings = directory / "cli.tfrc"
    overrides = f'dev_overrides {{ "hashicorp/azurerm" = "{plugin.parent}" }}'
    settings.write_text(f"provider_installation {{\n  {overrides}\n  direct {{}}\n}}\n")
    return run(directory, "validate", TF_CLI_CONFIG_FILE=str(settings), TF_DISABLE_PLUGIN_TLS="1")


@terraform_is_here
@pytest.mark.slow
def test_every_argument_type_and_reference_is_one_that_the_provider_documents(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = validate(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The configuration is valid" in done.stdout


@terraform_is_here
@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("purge_protection_enabled  ", "purge_protection ", "Unsupported argument"),
        ("  scope                = ", "# ", "Missing required argument"),
        (
            "azurerm_user_assigned_identity.capstan[each.key].principal_id",
            "var.clusters",
            "Incorrect attribute value type",
        ),
        ("azurerm_key_vault.capstan.id\n  role", "azurerm_key_vault.capstan.uri\n  role", "Unsupported attribute"),
        ("azurerm_key_vault.capstan.id\n  role", "azurerm_key_vault.other.id\n  role", "undeclared resource"),
    ],
)
def test_a_mistake_in_an_argument_or_a_reference_is_found(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace(right, wrong) if name == "main.tf" else text)
    assert right in FILES["main.tf"]
    done = validate(tmp_path)
    assert message in done.stderr


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
