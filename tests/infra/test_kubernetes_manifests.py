"""The manifests and the work pool's template are what they say: valid, consistent, confined, and able to run."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest

from tests.support.manifests import KUBERNETES, ROOT, resources

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = resources(KUBERNETES)
OLDEST = "1.30"  # where ValidatingAdmissionPolicy became v1
VERSIONS = (OLDEST, kubernetes_validate.latest_version())
TEMPLATE = json.loads((KUBERNETES / "work-pool.json").read_text())
# Prefect's Kubernetes worker refuses a template that lacks these two fields in the pod, where Kubernetes has no such
# fields and drops them (prefect_kubernetes/worker.py, _get_base_job_manifest).
PREFECTS_OWN = ("parallelism", "completions")


def named(kind: str, items: list[dict[str, Any]] = EVERYTHING) -> dict[str, dict[str, Any]]:
    return {f"{_namespace(item)}/{item['metadata']['name']}": item for item in items if item["kind"] == kind}


def _namespace(item: dict[str, Any]) -> str:
    return str(item["metadata"].get("namespace", ""))


@cache
def rendered_text(**values: Any) -> str:
    from prefect.utilities.templating import apply_values

    variables = {
        name: schema["default"] for name, schema in TEMPLATE["variables"]["properties"].items() if "default" in schema
    }
    return json.dumps(apply_values(TEMPLATE["job_configuration"], {**variables, **values}))


def rendered(**values: Any) -> dict[str, Any]:
    """The Job of a flow run as the worker makes it: variables at their defaults, Prefect's command."""
    job = json.loads(rendered_text(name="gentle-otter", **values))["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    assert all(pod.pop(field) == 1 for field in PREFECTS_OWN)
    pod["containers"][0].setdefault("args", ["prefect", "flow-run", "execute"])
    return dict(job)


def pod_specs() -> dict[str, dict[str, Any]]:
    return {
        "worker": named("Deployment")["capstan/capstan-worker"]["spec"]["template"]["spec"],
        "flow run": rendered()["spec"]["template"]["spec"],
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", EVERYTHING, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_every_manifest_is_valid_for_the_oldest_and_the_newest_kubernetes(item: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_of_a_flow_run_is_valid(version: str) -> None:
    kubernetes_validate.validate(rendered(), version, strict=True)


def test_a_manifest_with_a_misspelt_field_is_found_invalid() -> None:
    job = rendered()
    job["spec"]["template"]["spec"]["automountServiceAccountTokens"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_every_variable_of_the_template_is_used_and_every_placeholder_is_a_variable() -> None:
    declared = set(TEMPLATE["variables"]["properties"])
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == declared


def test_the_values_of_variables_reach_the_job() -> None:
    job = rendered(
        image="registry.example/capstan:2", service_account_name="capstan-reader", state_claim="other",
        approvers_config_map="who", kubeconfig_secret="clusters", finished_job_ttl=60, memory_limit="2Gi",
        cpu_request="1", memory_request="1Gi", namespace="elsewhere", image_pull_policy="Always",
    )  # fmt: skip
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (job["metadata"]["namespace"], job["spec"]["ttlSecondsAfterFinished"]) == ("elsewhere", 60)
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/capstan:2", "Always")
    assert pod["serviceAccountName"] == "capstan-reader"
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert sources["state"]["persistentVolumeClaim"]["claimName"] == "other"
    approvers, kubeconfig = sources["configuration"]["projected"]["sources"]
    assert (approvers["configMap"]["name"], kubeconfig["secret"]["name"]) == ("who", "clusters")


def test_a_job_is_run_once_and_its_retries_are_left_to_prefect() -> None:
    assert rendered()["spec"]["backoffLimit"] == 0
    assert rendered()["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("who", ["worker", "flow run"])
def test_pods_satisfy_the_restricted_pod_security_standard_and_cannot_write_their_image(who: str) -> None:
    pod = pod_specs()[who]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
    assert all(len(allowed & set(volume)) == 1 for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for namespace in named("Namespace").values():
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("who", ["worker", "flow run"])
def test_what_a_pod_mounts_exists_or_may_be_missing(who: str) -> None:
    pod = pod_specs()[who]
    assert f"capstan/{pod['serviceAccountName']}" in named("ServiceAccount")
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert f"capstan/{claim['claimName']}" in named("PersistentVolumeClaim")
        for source in volume.get("projected", {}).get("sources", []):
            if config := source.get("configMap"):
                data = named("ConfigMap")[f"capstan/{config['name']}"]["data"]
                assert {item["key"] for item in config["items"]} <= set(data)
            else:
                assert source["secret"]["optional"] is True
    for source in pod["containers"][0].get("envFrom", []):
        assert f"capstan/{source['configMapRef']['name']}" in named("ConfigMap")


def test_all_that_a_flow_run_writes_is_on_a_volume_and_evidence_on_one_that_lasts() -> None:
    pod = pod_specs()["flow run"]
    container = pod["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "persistentVolumeClaim" in volumes[mounts[environment["CAPSTAN_HOME"]]]
    assert "emptyDir" in volumes[mounts[environment["HOME"]]]
    assert environment["PREFECT_HOME"].startswith(f"{environment['HOME']}/")
    assert "emptyDir" in volumes[mounts["/tmp"]]
    directory, _, file = environment["CAPSTAN_APPROVERS"].rpartition("/")
    paths = [
        item["path"]
        for source in volumes[mounts[directory]]["projected"]["sources"]
        for item in source.get("configMap", {}).get("items", [])
    ]
    assert paths == [file]


def test_the_worker_hands_on_settings_that_hold_in_its_jobs() -> None:
    """Prefect's worker copies the settings it was started with into the environment of every Job."""
    worker, run = (pod_specs()[who]["containers"][0] for who in ("worker", "flow run"))
    theirs = {entry["name"]: entry.get("value") for entry in worker["env"]}
    ours = {entry["name"]: entry["value"] for entry in run["env"]}
    assert {name: theirs[name] for name in ("HOME", "PREFECT_HOME")} == {
        name: ours[name] for name in ("HOME", "PREFECT_HOME")
    }


def test_the_approvers_file_that_is_shipped_is_one_capstan_reads(tmp_path: Path) -> None:
    from capstan.approvals.policy import approver_policy
    from capstan.config import TrustDomain
    from capstan.errors import Denied

    file = tmp_path / "approvers.yaml"
    file.write_text(named("ConfigMap")["capstan/capstan-approvers"]["data"]["approvers.yaml"])
    environment = {"CAPSTAN_APPROVERS": str(file)}
    assert approver_policy(TrustDomain(name="linkerd"), environment).quorum == 1
    with pytest.raises(Denied):
        approver_policy(TrustDomain(name="unlisted"), environment)


def test_bindings_bind_roles_and_accounts_that_exist() -> None:
    accounts = {name.split("/")[1] for name in named("ServiceAccount")}
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        for name, binding in named(kind).items():
            reference = binding["roleRef"]
            scope = "" if reference["kind"] == "ClusterRole" else _namespace(binding)
            assert f"{scope}/{reference['name']}" in named(reference["kind"]), name
            for subject in binding["subjects"]:
                assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", "capstan")
                assert subject["name"] in accounts, name


def test_no_role_has_a_wildcard_and_secrets_are_permitted_by_name_only() -> None:
    roles = [*named("ClusterRole").values(), *named("Role").values()]
    assert len(roles) == 8
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"]
                assert set(rule["verbs"]) <= {"get", "update"}
    assert not any("secrets" in rule["resources"] for role in named("ClusterRole").values() for rule in role["rules"])


def test_the_reader_can_change_nothing() -> None:
    readers = [item for kind in ("ClusterRole", "Role") for item in named(kind).values() if _reads(item)]
    assert len(readers) == 4
    changing = [
        (resource, verb)
        for role in readers
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "list", "watch")
    ]
    assert changing == [("pods/portforward", "create")]  # opening a stream; it is a GET before Kubernetes 1.35


def _reads(item: dict[str, Any]) -> bool:
    return item["metadata"]["name"] == "capstan-reader"


def test_selectors_select_the_worker() -> None:
    deployment = named("Deployment")["capstan/capstan-worker"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    budget = named("PodDisruptionBudget")["capstan/capstan-worker"]["spec"]
    for selector in (deployment["spec"]["selector"], budget["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] < deployment["spec"]["replicas"]


def test_a_rotation_never_restarts_its_own_pods() -> None:
    """In a meshed namespace the injector would give them a proxy, and the rotation would evict itself."""
    assert named("Namespace")["/capstan"]["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"
    assert rendered()["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"


def test_images_are_of_the_versions_that_the_lock_file_holds() -> None:
    locked = {package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    image = pod_specs()["worker"]["containers"][0]["image"]
    assert image == f"docker.io/prefecthq/prefect:{locked['prefect']['version']}-python3.11-kubernetes"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert TEMPLATE["variables"]["properties"]["image"]["default"] == f"capstan:{version}"


def test_the_confined_rotator_may_write_what_a_restart_writes() -> None:
    from capstan.cluster.restart import RESTARTED_AT, STAMP

    policy = named("ValidatingAdmissionPolicy")["/capstan-rotator-only-restarts"]["spec"]
    (permitting,) = [
        rule["expression"] for rule in policy["validations"] if "variables.after.all" in rule["expression"]
    ]
    assert f"['{STAMP}', '{RESTARTED_AT}']" in permitting
