"""Webhook certificates turned on a whole lab, while pods are born and profiles applied all the time."""

from __future__ import annotations

import base64
import itertools
import json
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from kubernetes.client import ApiException

from infra.lab import pki
from tests.rotation.rotations import Rotations, wait_for
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rotation.runner import Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROFILES = "/apis/linkerd.io/v1alpha2/namespaces/shop/serviceprofiles"
POLICIES = "/apis/policy.linkerd.io/v1beta3/namespaces/shop/servers"
PODS = "/api/v1/namespaces/shop/pods"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
APISERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.tap.linkerd.io"
TAP = "/apis/tap.linkerd.io/v1alpha1"
WEBHOOKS = {
    "linkerd-proxy-injector.linkerd.io", "linkerd-sp-validator.linkerd.io", "linkerd-policy-validator.linkerd.io",
    "tap-injector.linkerd.io",
}  # fmt: skip
SERVERS = {
    "linkerd/linkerd-proxy-injector-k8s-tls": ("linkerd", "linkerd.io/control-plane-component=proxy-injector", 8443),
    "linkerd/linkerd-sp-validator-k8s-tls": ("linkerd", "linkerd.io/control-plane-component=destination", 8443),
    "linkerd/linkerd-policy-validator-k8s-tls": ("linkerd", "linkerd.io/control-plane-component=destination", 9443),
    "linkerd-viz/tap-k8s-tls": ("linkerd-viz", "component=tap", 8089),
    "linkerd-viz/tap-injector-k8s-tls": ("linkerd-viz", "component=tap-injector", 8443),
}


class Callers:
    """Has the API server call every webhook again and again; counts what it refused."""

    def __init__(self, lab: RunningLab) -> None:
        self.lab = lab
        self.admitted = 0
        self.refused: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Callers:
        self.lab.call("DELETE", "/lab/calls")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        container = {"name": "app", "image": "registry.example/app:1"}
        for number in itertools.count():
            if self._ending.wait(0.15):
                return
            name = {"name": f"called-{number}", "namespace": "shop"}
            profile = {"apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile", "metadata": name}
            server = {"apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": name}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": {"containers": [container]}}
            self._call("POST", f"{PROFILES}?dryRun=All", {**profile, "spec": {"routes": []}})
            self._call("POST", f"{POLICIES}?dryRun=All", {**server, "spec": {"podSelector": {}, "port": 80}})
            born = self._call("POST", f"{PODS}?dryRun=All", pod)
            if born is not None and "linkerd-proxy" not in json.dumps(born):
                self.refused.append("a pod was born without a proxy")
            self._call("GET", TAP)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self.lab.call(method, path, body)
        except ApiException as error:
            self.refused.append(f"{method} {path}: {error.status} {error.reason}")
            return None
        self.admitted += 1
        return answer

    def require_no_failure(self, least: int = 40) -> None:
        counted = self.lab.call("GET", "/lab/calls")
        assert counted["failures"] == []
        assert self.refused == []
        assert self.admitted >= least
        assert set(counted["calls"]) >= WEBHOOKS | {"v1alpha1.tap.linkerd.io"}


def fingerprints(pem: bytes) -> list[str]:
    return [pki.fingerprint(certificate) for certificate in x509.load_pem_x509_certificates(pem)]


def ca_bundles(lab: RunningLab) -> dict[str, list[str]]:
    """What the API server is told of each, as fingerprints."""
    found = {}
    for plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        for item in lab.call("GET", f"{ADMISSION}/{plural}")["items"]:
            found[item["metadata"]["name"]] = item["webhooks"][0]["clientConfig"]["caBundle"]
    found["v1alpha1.tap.linkerd.io"] = lab.call("GET", APISERVICE)["spec"]["caBundle"]
    return {name: fingerprints(base64.b64decode(text)) for name, text in found.items()}


def secrets(lab: RunningLab) -> dict[str, str]:
    """What each serving Secret holds."""
    found = {}
    for path in SERVERS:
        namespace, name = path.split("/")
        data = lab.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")["data"]
        (found[path],) = fingerprints(base64.b64decode(data["tls.crt"]))
    return found


def served(lab: RunningLab) -> dict[str, set[str]]:
    """What each replica presents on its own address."""
    found: dict[str, set[str]] = {}
    for secret, (namespace, selector, port) in SERVERS.items():
        pods = lab.call("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")["items"]
        addresses = [pod["status"]["podIP"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        assert addresses
        pems = [ssl.get_server_certificate((address, port)).encode() for address in addresses]
        found[secret] = {fingerprint for pem in pems for fingerprint in fingerprints(pem)}
    return found


def pods(lab: RunningLab) -> dict[str, str]:
    """Every pod that runs for longer than a test's own, by uid."""
    return {item["metadata"]["uid"]: item["metadata"]["name"] for item in lab.call("GET", "/api/v1/pods")["items"]}


def require_turned(lab: RunningLab, before: dict[str, str]) -> None:
    """Every Secret has a new pair, each replica serves it, and each caBundle holds nothing else."""
    now = secrets(lab)
    assert not set(now.values()) & set(before.values())
    assert served(lab) == {name: {held} for name, held in now.items()}
    assert sorted(ca_bundles(lab).values()) == sorted([held] for held in now.values())


def lab_with(tmp_path_factory: pytest.TempPathFactory, *options: str) -> Iterator[RunningLab]:
    every = ["--size", "small", "--leaf-seconds", "90", "--probes-per-second", "10", "--viz"]
    running = start_lab(
        tmp_path_factory.mktemp("webhooks"),
        *every,
        "--webhook-failure-policy",
        "Fail",
        *options,
        program=("infra.lab",),
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def webhook_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    yield from lab_with(tmp_path_factory, "--control-plane-replicas", "2")


@pytest.fixture
def case(webhook_lab: RunningLab, runner: Runner, tmp_path: Path) -> Rotations:
    found = Rotations(webhook_lab, runner, tmp_path / "home", "certificates")
    found.forget_earlier()
    return found


def turn(case: Rotations, die_at: str = "") -> Any:
    return case.run("--what", "webhooks", die_at=die_at)


KILLS = (
    "prepare > mint > account minted, half-written",
    "trust > widen-ca-bundle/cluster/sp-validator > account bundle-widened, half-written",
    "issue > switch-serving/cluster/sp-validator > account serving-switched, half-written",
    "distrust > narrow-ca-bundle/cluster/sp-validator > account bundle-narrowed, half-written",
)


@pytest.mark.proves(
    "faults", "webhook rotation killed in every phase", "gone on with; no call of the API server failed"
)
def test_all_webhooks_are_turned_while_pods_are_born_killed_in_every_phase_and_no_call_fails(case: Rotations) -> None:
    before, everybody = secrets(case.lab), pods(case.lab)
    with Callers(case.lab) as callers:
        for point in KILLS:
            killed = turn(case, die_at=point)
            assert killed.killed, (point, killed.code, killed.stderr[-2000:], killed.passed[-20:])
        ran = turn(case)
        assert ran.code == 0, ran.stderr[-3000:]
        time.sleep(1.0)  # calls under the last caBundle too
    callers.require_no_failure()
    assert (ran.data["kind"], ran.data["completed"], ran.data["resumed"]) == ("webhooks", True, True)
    assert ran.data["peers"] == 10
    require_turned(case.lab, before)
    assert pods(case.lab) == everybody, "a pod was restarted"
    record = case.record()
    assert (record["kind"], record["outcome"]) == ("webhooks", "completed")
    verified = case.runner.run(
        "evidence", "verify", ran.data["evidence"], "--head", record["notes"]["evidence-head"], "-o", "json",
        home=case.home,
    )  # fmt: skip
    assert verified.data["finished"] is True
    entries = [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]
    assert [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"] == ["trust", "issue", "distrust"]
    counts = case.lab.prober()
    assert counts["failed"] == 0, counts["failures"][:3]


@pytest.mark.long
@pytest.mark.proves("faults", "webhook rotation taken back from the middle", "no call of the API server failed")
def test_from_the_middle_of_the_switch_everything_is_taken_back(case: Rotations) -> None:
    before, told, everybody = secrets(case.lab), ca_bundles(case.lab), pods(case.lab)
    with Callers(case.lab) as callers:
        killed = turn(case, die_at=KILLS[2])
        assert killed.killed, (killed.code, killed.stderr[-2000:])
        dry = case.roll_back("--dry-run")
        assert dry.code == 2, dry.stderr[-2000:]
        back = case.roll_back()
        assert back.code == 0, back.stderr[-3000:]
        time.sleep(1.0)
    callers.require_no_failure()
    assert (back.data["direction"], back.data["completed"]) == ("back", True)
    assert (secrets(case.lab), ca_bundles(case.lab)) == (before, told)
    assert served(case.lab) == {name: {held} for name, held in before.items()}
    assert pods(case.lab) == everybody, "a pod was restarted"


@pytest.mark.long
@pytest.mark.proves(
    "faults", "policy-validator never reloads (linkerd2 issue 7519)", "seen, and its Deployment restarted"
)
def test_a_policy_validator_that_never_reloads_is_restarted_and_nothing_else(
    runner: Runner, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    for lab in lab_with(tmp_path_factory, "--stale-policy-validator"):
        case = Rotations(lab, runner, tmp_path / "home", "stale")
        case.forget_earlier()
        before, everybody = secrets(lab), pods(lab)
        with Callers(lab) as callers:
            ran = turn(case)
            assert ran.code == 0, ran.stderr[-3000:]
        callers.require_no_failure()
        require_turned(lab, before)
        gone = {everybody[uid] for uid in everybody.keys() - pods(lab).keys()}
        assert {name.rpartition("-")[0].rpartition("-")[0] for name in gone} == {"linkerd-destination"}


@pytest.mark.long
@pytest.mark.proves(
    "faults", "webhook Secret replaced before its caBundle", "the API server refuses: the naive order fails"
)
def test_the_naive_order_fails_calls(webhook_lab: RunningLab) -> None:
    """The Secret first, and the caBundle once it is served: what a script would do."""
    lab, path = webhook_lab, "/api/v1/namespaces/linkerd/secrets/linkerd-sp-validator-k8s-tls"
    before = lab.call("GET", path)
    pair = pki.mint_serving(["linkerd-sp-validator.linkerd.svc"], now=datetime.now(UTC))
    with Callers(lab) as callers:
        lab.call("PUT", path, {**before, "stringData": {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}})
        new = {pki.fingerprint(pair.certificate)}
        wait_for(lambda: served(lab)["linkerd/linkerd-sp-validator-k8s-tls"] == new, "the new certificate")
        time.sleep(1.0)
    counted = lab.call("GET", "/lab/calls")
    assert counted["calls"]["linkerd-sp-validator.linkerd.io"]["failed"] > 0
    assert all("x509: certificate signed by unknown authority" in failure["why"] for failure in counted["failures"])
    assert any("serviceprofiles" in refused for refused in callers.refused)
    latest = lab.call("GET", path)
    lab.call("PUT", path, {**latest, "data": before["data"]})
    old = set(fingerprints(base64.b64decode(before["data"]["tls.crt"])))
    wait_for(lambda: served(lab)["linkerd/linkerd-sp-validator-k8s-tls"] == old, "the old certificate")
