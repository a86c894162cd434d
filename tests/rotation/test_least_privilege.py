"""The roles in infra/kubernetes are enough for what they are for, and every single right in them is needed.

That such a rotation drops no handshake is proven elsewhere; here it has to be whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from capstan.cluster.client import Cluster
from capstan.cluster.eviction import still_there, why_never
from capstan.cluster.workloads import Owners, PodRef
from capstan.config import ClusterRef, System, TrustDomain
from capstan.errors import Throttled
from capstan.rotation.expiry import WarnBefore
from capstan.systems import rights
from flows.radar import look
from infra.lab.apiserver.rbac import Attributes, Rule, rule_allows, singles, subject_is
from infra.lab.apiserver.users import User
from tests.rotation.rotations import wait_for
from tests.support.manifests import KUBERNETES, create, resources

if TYPE_CHECKING:
    from pathlib import Path

    from capstan.cluster.access import Right as Needed
    from tests.rotation.rotations import Rotations
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REVIEWS = ("authorization.k8s.io", "authentication.k8s.io")  # everybody who is known may ask what he may
SHOP_APPS = "/apis/apps/v1/namespaces/shop"


@dataclass(frozen=True)
class Right:
    """One verb on one resource (and name), in one namespace or everywhere."""

    namespace: str
    rule: tuple[tuple[str, tuple[str, ...]], ...]
    origin: str

    def allows(self, asked: dict[str, Any]) -> bool:
        attributes = Attributes(
            User(asked["user"]), asked["verb"], asked["group"], "v1", *_split(asked["resource"]), asked["namespace"],
            asked["name"], asked["path"],
        )  # fmt: skip
        here = not self.namespace or self.namespace == asked["namespace"]
        return here and rule_allows({key: list(values) for key, values in self.rule}, attributes)

    def __str__(self) -> str:
        values = {key: ",".join(found) for key, found in self.rule}
        return f"{self.origin}: {values['verbs']} {values['resources']} {values.get('resourceNames', '')}".rstrip()


def _split(resource: str) -> tuple[str, str]:
    plural, _, subresource = resource.partition("/")
    return plural, subresource


def rights_of(items: list[dict[str, Any]], account: str) -> list[Right]:
    """Every single right that these manifests give to a ServiceAccount of namespace capstan."""
    user = User(f"system:serviceaccount:capstan:{account}")
    roles = {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in items}
    found = []
    for item in items:
        namespace = item["metadata"].get("namespace", "")
        if not item["kind"].endswith("RoleBinding") or not any(
            subject_is(subject, user, namespace) for subject in item["subjects"]
        ):
            continue
        reference = item["roleRef"]
        role = roles[reference["kind"], namespace if reference["kind"] == "Role" else "", reference["name"]]
        origin = f"{role['kind']} {namespace + '/' if namespace else ''}{role['metadata']['name']}"
        found += [Right(namespace, _frozen(single), origin) for rule in role["rules"] for single in singles(rule)]
    return found


def _frozen(rule: Rule) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((key, tuple(values)) for key, values in rule.items())


def is_in(asked: dict[str, Any], right: Needed) -> bool:
    """Whether what was asked for is this right of the product's own list."""
    wanted = (right.verb, right.group, right.resource)
    here = right.namespace in ("", asked["namespace"]) and right.name in ("", asked["name"])
    return here and wanted == (asked["verb"], asked["group"], asked["resource"])


def kubeconfig_of(lab: RunningLab, account: str, directory: Path) -> Path:
    """The lab's kubeconfig with a token of this ServiceAccount in the administrator's place."""
    path = f"/api/v1/namespaces/capstan/serviceaccounts/{account}"
    wait_for(lambda: lab.call("GET", path) is not None, f"ServiceAccount {account}")
    token = lab.call("POST", f"{path}/token", {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    yaml = YAML(typ="safe")
    config = yaml.load(lab.kubeconfig.read_text())
    for entry in config["users"]:
        entry["user"] = {"token": token}
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{account}.kubeconfig"
    with file.open("w") as out:
        yaml.dump(config, out)
    return file


def add_workloads_that_no_rollout_moves(lab: RunningLab) -> list[str]:
    """A ReplicaSet and a ReplicationController on their own, and a StatefulSet that waits for the deletion of its pods;
    meshed and ready. Returns their paths."""
    made = []
    for kind, path in (
        ("ReplicaSet", f"{SHOP_APPS}/replicasets"),
        ("ReplicationController", "/api/v1/namespaces/shop/replicationcontrollers"),
        ("StatefulSet", f"{SHOP_APPS}/statefulsets"),
    ):
        name = f"odd-{kind.lower()}"
        labels = {"app": name}
        spec: dict[str, Any] = {
            "replicas": 1,
            "selector": labels if kind == "ReplicationController" else {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "app", "image": "registry.example/odd:1"}]},
            },
        }
        if kind == "StatefulSet":
            spec |= {"serviceName": name, "updateStrategy": {"type": "OnDelete"}}
        lab.call("POST", path, {"kind": kind, "metadata": {"name": name}, "spec": spec})
        made.append(f"{path}/{name}")
    for path in made:
        wait_for(lambda path=path: lab.call("GET", path)["status"].get("readyReplicas") == 1, f"{path} to be ready")
    return made


def use_what_only_a_race_needs(kubeconfig: Path) -> None:
    """Code of the product that reads single objects only when they were born, or went, in between."""
    cluster = Cluster.connect(kubeconfig=kubeconfig)
    for kind in ("ReplicaSet", "Job"):
        reference = {"kind": kind, "name": "born-just-now", "controller": True}
        pod = {"metadata": {"namespace": "shop", "name": "pod", "ownerReferences": [reference]}}
        assert Owners(cluster).of(pod).kind == kind
    assert still_there(cluster, [PodRef("shop", "gone", "uid")]) == []
    cluster.close()


def use_what_only_a_refused_eviction_needs(kubeconfig: Path) -> None:
    """Code of the product that looks at disruption budgets when one of them said no."""
    cluster = Cluster.connect(kubeconfig=kubeconfig)
    pod = {"metadata": {"namespace": "shop", "name": "pod"}}
    refusal = Throttled("cannot evict", observed="it would violate the pod's disruption budget")
    assert why_never(cluster, pod, refusal) == ""
    cluster.close()


def test_a_rotation_runs_with_exactly_these_roles_and_uses_every_right_in_them(
    rotations: Rotations, tmp_path: Path
) -> None:
    lab, run = rotations.lab, rotations.runner.run
    items = resources(KUBERNETES / "cluster")
    create(lab, items)
    odd = add_workloads_that_no_rollout_moves(lab)
    reader, rotator = (kubeconfig_of(lab, f"capstan-{role}", tmp_path) for role in ("reader", "rotator"))
    lab.reset_prober()
    lab.call("DELETE", "/lab/stats")
    try:
        # 1. The reader reads, and is refused the first thing that is more.
        home = tmp_path / "reader"
        for command, code in (("check", 0), ("plan", 2), ("status", 0)):
            read = run(command, "-o", "json", home=home, kubeconfig=reader)
            assert read.code == code, f"{command}: {read.stderr}{read.stdout}"
        look(TrustDomain(clusters=(ClusterRef(kubeconfig=str(reader)),)), WarnBefore(), datetime.now(UTC))
        use_what_only_a_race_needs(reader)
        refused = run("rotate", "--approve", "auto", "-o", "json", home=home, kubeconfig=reader)
        assert refused.code == 1
        words = " ".join(refused.stderr.split())
        assert "rights that a rotation needs are missing, so none is begun" in words
        assert "as system:serviceaccount:capstan:capstan-reader" in words
        assert "cannot get namespaces capstan-system in namespace capstan-system" in words
        assert "capstan check --rbac" in words
        # 2. The rotator rotates.
        use_what_only_a_refused_eviction_needs(rotator)
        arguments = ("rotate", "--rotation", rotations.rotation, "--approve", "auto", "-o", "json")
        ran = run(*arguments, home=rotations.home, kubeconfig=rotator)
        assert ran.code == 0, ran.stderr[-3000:]
        assert ran.data["completed"] is True
        assert rotations.live_roots() == set(ran.data["roots"]["after"])
    finally:
        used = lab.call("GET", "/lab/stats")["rights"]
        for path in odd:
            lab.call("DELETE", f"{path}?propagationPolicy=Background")  # a ReplicationController would leave its pod
        wait_for(lambda: not any(pod["pod"].startswith("odd-") for pod in lab.pods()), "the added workloads to go")
    # 3. It was refused nothing, and each right was the only one that permitted something it did.
    asked = {
        account: [entry for entry in used if entry["user"] == f"system:serviceaccount:capstan:{account}"]
        for account in ("capstan-reader", "capstan-rotator")
    }
    denied = [entry for entry in asked["capstan-rotator"] if not entry["allowed"]]
    assert denied == []
    needed: set[Right] = set()
    held = {account: rights_of(items, account) for account in asked}
    for account, entries in asked.items():
        for entry in entries:
            granting = [right for right in held[account] if right.allows(entry)]
            if entry["allowed"] and len(granting) == 1:
                needed.add(granting[0])
    every = {right for found in held.values() for right in found}
    # 4. The list that `capstan check --rbac` asks for is what was used: nothing was asked for that is not in it.
    listed = [need.right for need in rights.needed(System.LINKERD, "linkerd", "linkerd")]
    unlisted = {
        f"{entry['verb']} {entry['resource']} {entry['namespace']}/{entry['name']}"
        for entry in asked["capstan-rotator"]
        if entry["group"] not in REVIEWS and not entry["path"] and not any(is_in(entry, right) for right in listed)
    }
    assert sorted(unlisted) == []
    assert sorted(map(str, every - needed)) == []
    assert len(every) > 30
