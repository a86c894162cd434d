"""What an AKS add-on of the lab can be asked to be, and the names it then has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from infra.lab.aks import install, validator
from infra.lab.aks.azure import SECRET_NAMES
from infra.lab.aks.install import AksOptions, CaObjects

if TYPE_CHECKING:
    from collections.abc import Sequence

CA = CaObjects("capstan-lab", "00000000-0000-0000-0000-000000000001", SECRET_NAMES)


@pytest.mark.parametrize(
    ("revision", "image"),
    [
        ("asm-1-17", "mcr.microsoft.com/oss/istio/pilot:1.17.2-distroless"),
        ("asm-1-25", "mcr.microsoft.com/oss/istio/pilot:1.25.2-distroless"),
        ("asm-1-26", "mcr.microsoft.com/oss/v2/istio/pilot:v1.26.2-1"),
        ("asm-1-30", "mcr.microsoft.com/oss/v2/istio/pilot:v1.30.2-1"),
    ],
)
def test_a_revision_is_a_version_with_the_image_names_of_its_time(revision: str, image: str) -> None:
    (container,) = discovery(AksOptions(revisions=(revision,)), revision)
    assert container["image"] == image


@pytest.mark.parametrize("revisions", [("1.30",), ("asm-1-28", "asm-1-29", "asm-1-30"), ("asm-1-30", "asm-1-30")])
def test_other_revisions_and_more_than_two_are_refused(revisions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="revision"):
        AksOptions(revisions=revisions)


def test_an_unknown_delivery_is_refused() -> None:
    with pytest.raises(ValueError, match="none of csi, cacerts, cronjob"):
        AksOptions(ca_delivery="carrier pigeon")


@pytest.mark.parametrize(
    ("delivery", "revisions", "multiroot"),
    [("csi", ("asm-1-30",), True), ("cacerts", ("asm-1-30",), True), ("cronjob", ("asm-1-17",), False)],
)
def test_each_time_has_its_default_revision_and_its_way_with_new_roots(
    delivery: str, revisions: tuple[str, ...], multiroot: bool
) -> None:
    options = AksOptions(ca_delivery=delivery)
    assert options.revisions == revisions
    (container,) = discovery(options, revisions[0])
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment.get("ISTIO_MULTIROOT_MESH", "false") == str(multiroot).lower()


def test_with_csi_the_vaults_files_are_mounted_straight_at_the_cas_place() -> None:
    options = AksOptions()
    template = install.deployment(options, "asm-1-30")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in template["volumes"] if "csi" in volume]
    assert volume["csi"] == {
        "driver": "secrets-store.csi.k8s.io",
        "readOnly": True,
        "volumeAttributes": {"secretProviderClass": "istiod-spc-asm-1-30"},
    }
    assert mounted_at(template["containers"][0], "/etc/cacerts") == volume["name"]
    assert "secretObjects" not in install.provider_class(options, "asm-1-30", CA)["spec"]


@pytest.mark.parametrize("delivery", ["cacerts", "cronjob"])
def test_before_that_a_synced_secret_is_mounted_and_the_class_beside_it(delivery: str) -> None:
    options = AksOptions(ca_delivery=delivery)
    template = install.deployment(options, "asm-1-17")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in template["volumes"]}
    place = mounted_at(template["containers"][0], "/etc/cacerts")
    assert volumes[place]["secret"] == {"secretName": "cacerts", "optional": False}
    assert "csi" in template["volumes"][0]  # first: it makes the Secret that a later one shows
    (wanted,) = install.provider_class(options, "asm-1-17", CA)["spec"]["secretObjects"]
    assert (wanted["secretName"], wanted["type"]) == ("cacerts", "opaque")
    assert {item["key"] for item in wanted["data"]} == set(SECRET_NAMES)


def test_a_class_asks_for_the_four_secrets_under_istios_file_names() -> None:
    parameters = install.provider_class(AksOptions(), "asm-1-30", CA)["spec"]["parameters"]
    yaml = YAML(typ="safe")
    entries = [yaml.load(entry) for entry in yaml.load(parameters["objects"])["array"]]
    assert {entry["objectAlias"]: entry["objectName"] for entry in entries} == SECRET_NAMES
    assert (parameters["keyvaultName"], parameters["useVMManagedIdentity"]) == ("capstan-lab", "true")


def test_the_cron_job_runs_every_ten_minutes_by_its_schedule() -> None:
    (job,) = [item for item in validator.objects(10) if item["kind"] == "CronJob"]
    assert (job["metadata"]["name"], job["spec"]["schedule"]) == ("istio-cert-validator-cronjob", "*/10 * * * *")


def discovery(options: AksOptions, revision: str) -> Sequence[Any]:
    containers: Sequence[Any] = install.deployment(options, revision)["spec"]["template"]["spec"]["containers"]
    return containers


def mounted_at(container: Any, path: str) -> str:
    (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path]
    return str(name)
