"""Rights: what is missing is said before anything starts, and the shipped roles are the list, no more and no less."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client as kubernetes_client
from ruamel.yaml import YAML

from capstan.cli import app
from capstan.cluster.access import Right, grant, may, who_am_i
from capstan.cluster.client import Cluster
from capstan.cluster.resources import NAMESPACES, SERVICE_ACCOUNTS, Resource
from capstan.config import System
from capstan.errors import Denied, InvalidInput, ServerFault
from capstan.systems.rights import Purpose, needed, require_rights, rights_in
from infra.lab.apiserver.rbac import Attributes, rule_allows, singles
from infra.lab.apiserver.users import User
from tests.support.apiserver import Running
from tests.support.manifests import KUBERNETES, resources

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUP = "rbac.authorization.k8s.io"
RBAC = {
    "ClusterRole": Resource(GROUP, "v1", "clusterroles", "ClusterRole", namespaced=False),
    "ClusterRoleBinding": Resource(GROUP, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    "Role": Resource(GROUP, "v1", "roles", "Role"),
    "RoleBinding": Resource(GROUP, "v1", "rolebindings", "RoleBinding"),
    "Namespace": NAMESPACES,
    "ServiceAccount": SERVICE_ACCOUNTS,
}
SHIPPED = {
    System.LINKERD: [*resources(KUBERNETES / "cluster"), *resources(KUBERNETES / "linkerd-webhooks")],
    System.ISTIO: [*resources(KUBERNETES / "cluster"), *resources(KUBERNETES / "istio")],
}
DOMAIN = "prod"
RBAC_ROW = pytest.mark.proves(
    "faults", "RBAC gaps", "`capstan check --rbac` names each missing verb, resource and namespace"
)


@dataclass(frozen=True)
class Granted:
    """A single right of a shipped role."""

    role: str
    namespace: str
    rule: tuple[tuple[str, tuple[str, ...]], ...]

    def allows(self, right: Right) -> bool:
        plural, _, subresource = right.resource.partition("/")
        asked = Attributes(User("x"), right.verb, right.group, "v1", plural, subresource, right.namespace, right.name)
        here = not self.namespace or self.namespace == right.namespace
        return here and rule_allows({key: list(values) for key, values in self.rule}, asked)

    def __str__(self) -> str:
        values = {key: ",".join(found) for key, found in self.rule}
        return (
            f"{self.role} {self.namespace}: {values['verbs']} {values['resources']} {values.get('resourceNames', '')}"
        )


def granted(items: list[dict[str, Any]], part: str) -> list[Granted]:
    """Every single right of the roles whose name ends so."""
    return [
        Granted(
            item["metadata"]["name"], item["metadata"].get("namespace", ""), tuple((k, tuple(v)) for k, v in s.items())
        )
        for item in items
        if item["kind"] in ("Role", "ClusterRole") and item["metadata"]["name"].endswith(part)
        for rule in item["rules"]
        for s in singles(rule)
    ]  # fmt: skip


def shipped_rights() -> list[Granted]:
    items = [item for found in SHIPPED.values() for item in found]
    return granted(items, "-reader") + granted(items, "-rotator")


def rights_for(system: System, *purposes: Purpose) -> list[Right]:
    return [need.right for need in needed(system, system.namespace, DOMAIN) if need.purpose in purposes]


# --- the list and the manifests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SHIPPED)
def test_the_shipped_roles_grant_every_right_that_is_asked_for(system):
    reading, rotating = granted(SHIPPED[system], "-reader"), granted(SHIPPED[system], "-rotator")
    unmet = [right for right in rights_for(system, Purpose.READ) if not any(g.allows(right) for g in reading)]
    more = rights_for(system, Purpose.ROTATE, Purpose.WEBHOOKS)
    unmet += [right for right in more if not any(g.allows(right) for g in (*reading, *rotating))]
    assert [str(right) for right in unmet] == []


def test_every_right_in_the_shipped_roles_is_asked_for():
    everything = [*rights_for(System.LINKERD, *Purpose), *rights_for(System.ISTIO, *Purpose)]
    # The add-on's roles are Istio's with the namespace written over.
    everything += [
        Right(r.verb, r.resource, r.group, "istio-system" if r.namespace == "aks-istio-system" else r.namespace, r.name)
        for r in rights_for(System.AKS_ISTIO, Purpose.READ, Purpose.ROTATE)
    ]
    every = shipped_rights()
    assert len(every) > 60
    assert [str(one) for one in every if not any(one.allows(right) for right in everything)] == []


def test_no_shipped_role_grants_what_is_optional():
    every = shipped_rights()
    optional = [*rights_for(System.LINKERD, Purpose.OPTIONAL), *rights_for(System.ISTIO, Purpose.OPTIONAL)]
    assert len(optional) > 10
    assert [str(right) for right in optional if any(one.allows(right) for one in every)] == []


@pytest.mark.parametrize("system", System)
def test_no_right_is_asked_for_twice_and_each_says_what_for(system):
    found = needed(system, system.namespace, DOMAIN)
    assert len({need.right for need in found}) == len(found)
    assert all(need.why for need in found)


@pytest.mark.proves(
    "faults", "deny policy on the admin port",
    "proxies are reached by port-forward alone, whose source is 127.0.0.1 and always permitted; never by pods/proxy",
)  # fmt: skip
def test_no_proxy_is_ever_asked_through_the_api_servers_own_address():
    everything = [right.resource for system in System for right in rights_for(system, *Purpose)]
    assert "pods/portforward" in everything
    assert not {"pods/proxy", "services/proxy", "nodes/proxy", "pods/exec"} & set(everything)


# --- the live API server ----------------------------------------------------------------------------------------------


class World:
    """An API server with the shipped roles, and clients and kubeconfigs of their accounts."""

    def __init__(self, running: Running, directory: Path) -> None:
        self.running = running
        self.directory = directory
        self.admin = running.connect(sleep=lambda _seconds: None)
        for namespace in ("linkerd", "istio-system"):
            self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for item in [*SHIPPED[System.ISTIO], *resources(KUBERNETES / "linkerd-webhooks")]:
            self.apply(item)
        self.account("nobody")

    def apply(self, item: dict[str, Any]) -> None:
        self.admin.create(RBAC[item["kind"]], item)

    def account(self, name: str) -> None:
        self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "capstan"}})

    def kubeconfig(self, account: str) -> Path:
        token = self.admin.request_token(account, "capstan", "https://kubernetes.default.svc.cluster.local")
        yaml = YAML(typ="safe")
        config = yaml.load(self.running.server.kubeconfig.read_text())
        for entry in config["users"]:
            entry["user"] = {"token": token}
        path = self.directory / f"{account}.kubeconfig"
        with path.open("w") as file:
            yaml.dump(config, file)
        return path

    def connect(self, account: str) -> Cluster:
        return Cluster.connect(kubeconfig=self.kubeconfig(account), name="east", sleep=lambda _seconds: None)

    def replace_rules(self, kind: str, name: str, namespace: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the rules that there were."""
        held = self.admin.get(RBAC[kind], name, namespace)
        self.admin.replace(RBAC[kind], {**held, "apiVersion": f"{GROUP}/v1", "kind": kind, "rules": rules})
        return held["rules"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    made = World(running, tmp_path_factory.mktemp("kubeconfigs"))
    yield made
    made.admin.close()
    running.stop()


@RBAC_ROW
@pytest.mark.parametrize("system", SHIPPED)
def test_with_the_shipped_roles_nothing_is_missing(world, system):
    wanted = needed(system, system.namespace, DOMAIN)
    reader = rights_in(world.connect("capstan-reader"), wanted)
    rotator = rights_in(world.connect("capstan-rotator"), wanted)
    assert reader.user == "system:serviceaccount:capstan:capstan-reader"
    assert reader.missing(Purpose.READ) == ()
    assert Purpose.ROTATE in {need.purpose for need in reader.missing(*Purpose)}
    assert {need.purpose for need in rotator.missing(*Purpose)} == {Purpose.OPTIONAL}
    assert all(verdict.reason.startswith("RBAC: allowed by") for verdict in rotator.verdicts if verdict.allowed)


@pytest.mark.proves("faults", "RBAC gaps", "a rotation is refused before it takes a lock; each missing right is named")
def test_a_single_missing_right_is_named_before_anything_starts(world):
    rotator = world.connect("capstan-rotator")
    require_rights(rotator, System.LINKERD, "linkerd", DOMAIN, "anchor")
    held = world.replace_rules("Role", "capstan-rotator", "linkerd", [])
    try:
        with pytest.raises(Denied) as refused:
            require_rights(rotator, System.LINKERD, "linkerd", DOMAIN, "anchor")
        with pytest.raises(Denied) as issuer_alone:
            require_rights(rotator, System.LINKERD, "linkerd", DOMAIN, "issuer")
        # Webhooks have roles of their own, and none of these.
        require_rights(rotator, System.LINKERD, "linkerd", DOMAIN, "webhooks")
    finally:
        world.replace_rules("Role", "capstan-rotator", "linkerd", held)
    error = refused.value
    assert error.what.startswith("5 of ")
    assert error.where == "cluster east, as system:serviceaccount:capstan:capstan-rotator"
    for named in (
        "cannot update configmaps linkerd-identity-trust-roots in namespace linkerd (to declare the roots)",
        "cannot update configmaps linkerd-config in namespace linkerd",
        "cannot update secrets linkerd-config-overrides in namespace linkerd",
        "cannot update secrets linkerd-identity-issuer in namespace linkerd (to switch the issuer)",
        "cannot get pods/log in namespace linkerd (to hear from each identity replica",
    ):
        assert named in error.observed
    assert "kubectl apply -k infra/kubernetes/cluster" in error.expected
    assert error.next_command.startswith("capstan check --rbac")
    assert issuer_alone.value.what.startswith("4 of ")
    assert "trust-roots" not in issuer_alone.value.observed


def test_a_long_list_of_missing_rights_is_cut_and_counted(world):
    with pytest.raises(Denied) as refused:
        require_rights(world.connect("nobody"), System.ISTIO, "istio-system", DOMAIN, "anchor")
    lines = refused.value.observed.splitlines()
    assert len(lines) == 13
    shown = sum(len(line.partition(" (to ")[0].split(", ")) for line in lines[:-1])  # verbs of one object
    assert int(refused.value.what.split()[0]) == shown + int(lines[-1].split()[1])


@RBAC_ROW
def test_the_roles_that_are_printed_grant_exactly_what_was_missing(world):
    world.account("newcomer")
    newcomer = world.connect("newcomer")
    wanted = needed(System.LINKERD, "linkerd", DOMAIN)
    before = rights_in(newcomer, wanted)
    missing = [need.right for need in before.missing(Purpose.READ)]
    assert len(missing) > 20
    for item in grant(missing, before.user):
        world.apply(item)
    after = rights_in(newcomer, wanted)
    assert after.missing(Purpose.READ) == ()
    gained = {v.need.right for v in after.verdicts if v.allowed} - {v.need.right for v in before.verdicts if v.allowed}
    # A right for all names gives the one for a name with it, and nothing else comes along.
    assert {right for right in gained if right not in missing} <= {right for right in gained if right.name}
    assert {v.need.right for v in after.verdicts if not v.allowed and v.need.purpose is Purpose.ROTATE}


def test_a_person_is_bound_by_name_and_an_account_as_an_account():
    rights = [Right("get", "pods"), Right("list", "pods"), Right("get", "secrets", namespace="linkerd", name="a")]
    cluster_role, binding, role, account = (
        grant(rights, "ada@example.org")[:3] + grant(rights, "system:serviceaccount:a:b")[3:]
    )
    assert cluster_role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    assert binding["subjects"] == [{"apiGroup": GROUP, "kind": "User", "name": "ada@example.org"}]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}]
    assert account["subjects"] == [{"kind": "ServiceAccount", "name": "b", "namespace": "a"}]
    with pytest.raises(InvalidInput, match="nobody to give rights to"):
        grant(rights, "")


@pytest.mark.parametrize(
    ("right", "command"),
    [
        (Right("list", "pods"), "kubectl auth can-i list pods -A"),
        (Right("create", "pods/eviction"), "kubectl auth can-i create pods --subresource=eviction -A"),
        (Right("update", "secrets", "", "linkerd", "x"), "kubectl auth can-i update secrets/x -n linkerd"),
        (Right("get", "jobs", "batch"), "kubectl auth can-i get jobs.batch -A"),
    ],
    ids=["collection", "subresource", "named", "group"],
)
def test_each_right_has_the_kubectl_command_that_asks_the_same(right, command):
    assert right.kubectl == command


def test_an_answer_that_is_none_is_no_permission():
    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"kind": "SelfSubjectAccessReview", "status": {}}'
            self.send_response(201)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_address[1]}"
        cluster = Cluster("east", kubernetes_client.Configuration(host=host))
        with pytest.raises(ServerFault, match="did not answer an access review"):
            may(cluster, [Right("get", "pods")])
        cluster.close()
        server.shutdown()


@pytest.mark.proves("faults", "429, 500, 503", "access reviews are asked again after them, as late as Retry-After says")
def test_a_review_is_asked_again_when_the_server_is_busy(running, faults):
    slept: list[float] = []
    cluster = running.connect(sleep=slept.append)
    faults(method="POST", path="/selfsubjectaccessreviews$", nth=1, action={"status": 429, "retryAfter": 3})
    faults(method="POST", path="/selfsubjectaccessreviews$", nth=2, action={"status": 503})
    (answer,) = may(cluster, [Right("get", "pods")])
    assert answer.allowed
    assert slept[0] == 3.0
    assert len(slept) == 2


def test_an_api_server_that_forbids_even_asking_is_told_so(running, faults):
    faults(method="POST", path="/selfsubjectaccessreviews$", action={"status": 403})
    with pytest.raises(Denied) as refused:
        may(running.connect(), [Right("get", "pods")])
    assert refused.value.what == "cannot create selfsubjectaccessreviews"
    assert "kubectl auth can-i create selfsubjectaccessreviews" in refused.value.next_command


def test_an_api_server_of_before_1_28_does_not_tell_who_we_are(running, faults):
    faults(method="POST", path="/selfsubjectreviews$", action={"status": 404})
    assert who_am_i(running.connect()) == ""


# --- the command ------------------------------------------------------------------------------------------------------


def check(world: World, account: str, *more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    arguments = ("check", "--rbac", "--system", "linkerd", "--kubeconfig", str(world.kubeconfig(account)), *more)
    code = app(list(arguments), exit_on_error=False, result_action="return_value")
    return int(code), capsys.readouterr().out


@RBAC_ROW
def test_the_command_says_what_is_missing_in_a_hundred_columns_and_how_to_grant_it(world, capsys):
    code, out = check(world, "nobody", capsys=capsys)
    assert code == 1
    table, _, manifest = out.partition("\n---\n")
    assert max(map(len, table.splitlines())) <= 100
    assert "rights of system:serviceaccount:capstan:nobody" in table
    assert "missing to read" in table
    assert "missing to rotate" in table
    assert "kubectl apply -f FILE" in table
    documents = [item for item in YAML(typ="safe").load_all("---\n" + manifest.partition("Status check")[0]) if item]
    kinds = [item["kind"] for item in documents]
    assert kinds[0] == "Namespace"
    assert {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} <= set(kinds)


def test_a_reader_has_all_it_needs_to_read_and_not_to_rotate(world, capsys):
    assert check(world, "capstan-reader", "--for", "read", "-o", "short", capsys=capsys)[0] == 0
    code, out = check(world, "capstan-reader", "-o", "short", capsys=capsys)
    assert code == 1
    assert "nothing is missing to read" in out
    assert "linkerd-identity-issuer" in out


def test_as_data_every_right_is_there_with_the_servers_own_reason(world, capsys):
    code, out = check(world, "capstan-rotator", "-o", "json", capsys=capsys)
    data = json.loads(out)
    assert (code, data["success"], data["for"]) == (0, True, "rotate")
    (cluster,) = data["clusters"]
    assert cluster["user"] == "system:serviceaccount:capstan:capstan-rotator"
    assert cluster["grant"] == []
    one = next(r for r in cluster["rights"] if r["name"] == "linkerd-identity-issuer" and r["verb"] == "update")
    assert one == {
        "verb": "update", "group": "", "resource": "secrets", "namespace": "linkerd",
        "name": "linkerd-identity-issuer", "for": "rotate", "why": "switch the issuer", "allowed": True,
        "reason": one["reason"],
    }  # fmt: skip
    assert one["reason"].startswith('RBAC: allowed by RoleBinding "capstan-rotator/linkerd"')
    assert {r["for"] for r in cluster["rights"] if not r["allowed"]} == {"optional"}


def test_for_without_rbac_is_refused(world):
    with pytest.raises(InvalidInput, match="--for goes with --rbac"):
        app(["check", "--for", "read"], exit_on_error=False, result_action="return_value")
