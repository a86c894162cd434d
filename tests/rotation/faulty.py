"""A rotation that meets a fault at a phase: stopped by it with one clear error, nothing lost, gone on with."""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from kubernetes.client import ApiException

from tests.support.labs import start_lab

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.rotation.rotations import Rotations
    from tests.rotation.runner import Ran
    from tests.support.labs import RunningLab

PHASES = ("prepare", "trust", "issue", "wait", "distrust")
ROOTS = "/api/v1/namespaces/linkerd/configmaps/linkerd-identity-trust-roots"
ISSUER = "/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer"
RECORD = "/api/v1/namespaces/capstan-system/configmaps/capstan-rotation-linkerd"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/capstan-system/leases/capstan-rotation-linkerd"

# Where a phase is met, and what it then asks of the API. Each point is passed again by every later run that has not yet
# come past the phase; the wait has two, because leaves may be renewed while a fault is being lifted.
POINTS = {
    "prepare": ("prepare > mint > begin",),
    "trust": ("trust > widen-bundle/cluster > begin",),
    "issue": ("issue > switch-issuer/cluster > begin",),
    "wait": ("issue > gate/distrust > begin", "distrust > gate/distrust > begin"),
    "distrust": ("distrust > narrow-bundle/cluster > begin",),
}
REQUESTS = {
    "prepare": ("PUT", f"^{RECORD}$", "cannot replace configmaps", "capstan-system/capstan-rotation-linkerd"),
    "trust": ("PUT", f"^{ROOTS}$", "cannot replace configmaps", "linkerd/linkerd-identity-trust-roots"),
    "issue": ("PUT", f"^{ISSUER}$", "cannot replace secrets", "linkerd/linkerd-identity-issuer"),
    "wait": ("GET", r"^/api/v1/pods\?", "cannot list pods", "pods"),
    "distrust": ("PUT", f"^{ROOTS}$", "cannot replace configmaps", "linkerd/linkerd-identity-trust-roots"),
}
# What an impatient operator sets: a fault that stays is told within seconds.
IMPATIENT = {"CAPSTAN_RETRY_FOR": "0", "CAPSTAN_REQUEST_TIMEOUT": "4"}


@dataclass(frozen=True)
class Fault:
    """One way in which the API fails.

    Attributes:
        action: Of a rule at /lab/faults; None where the whole server goes down.
        error: Texts of what the run says on its standard error, in any phase.
        next_command: How what it says to do begins.
        last: The request may have been carried out: a later fault of the same phase would not be met.
    """

    action: dict[str, Any] | None
    error: tuple[str, ...]
    next_command: str
    last: bool = False


# Where the product itself tries again for longer, it says so in its own words.
WORDS = {
    ("prepare", "409"): (
        "the rotation record changes faster than it can be written",
        ("8 conflicts in a row",), "kubectl get lease capstan-rotation-linkerd -n capstan-system",
    ),
}  # fmt: skip
RETRY = "run the same command again; it observes first"
FAULTS = {
    "refused connections": Fault(None, ("expected  an answer from the API server",), "kubectl cluster-info"),
    "dropped connections": Fault(
        {"drop": "before"}, ("RemoteDisconnected", "expected  an answer from the API server"), "kubectl cluster-info"
    ),
    "403": Fault({"status": 403}, ("HTTP 403 Forbidden", "expected  permission for this verb"), "kubectl auth can-i "),
    "409": Fault({"status": 409}, ("HTTP 409 Conflict",), RETRY),
    "429": Fault(
        {"status": 429, "retryAfter": 1}, ("HTTP 429", "the server asks to wait 1 s"),
        "wait, then run the same command again",
    ),
    "500": Fault({"status": 500}, ("HTTP 500 InternalError",), "kubectl get --raw '/readyz?verbose'"),
    "503": Fault({"status": 503}, ("HTTP 503 ServiceUnavailable",), "kubectl get --raw '/readyz?verbose'"),
    "timeouts": Fault({"delay": 6}, ("timed out",), "kubectl cluster-info", last=True),
    "lost answers": Fault({"drop": "after"}, ("RemoteDisconnected",), "kubectl cluster-info", last=True),
}  # fmt: skip


class Faulty:
    """A rotation that is run into one fault after the other."""

    def __init__(self, case: Rotations) -> None:
        self.case = case
        self.before: dict[str, Any] = {}

    def meet(self, phase: str, name: str) -> Ran:
        """Run until the fault of that name stops the rotation in that phase; then the fault is gone."""
        fault = FAULTS[name]
        method, path, _, _ = REQUESTS[phase]
        if fault.action is None:
            control = self.case.lab.facts["control"]
            call: tuple[Any, ...] = ("POST", f"{control}/outage", {"seconds": 10})
        else:
            rule = {"method": method, "path": path, "userAgent": "capstan", "times": 0, "action": fault.action}
            call = ("POST", "/lab/faults", rule)
        ran = self.case.run(call_at={point: [call] for point in POINTS[phase]}, environment=IMPATIENT)
        self.lift(name)
        passed, later = set(ran.passed), PHASES[PHASES.index(phase) + 1 :]
        assert passed & set(POINTS[phase]), f"{phase} was not come to: {ran.stderr[-2000:]}"
        beyond = {point for one in later for point in POINTS[one]} - set(POINTS[phase])
        assert not passed & beyond, f"{name} did not stop it in {phase}: {ran.stderr[-2000:]}"
        self.require_clear_error(ran, phase, name)
        self.require_nothing_lost()
        return ran

    def lift(self, name: str) -> None:
        if FAULTS[name].action is None:
            until(lambda: answers(self.case), "the API server to come back")
        self.case.lab.clear_faults()

    def require_clear_error(self, ran: Ran, phase: str, name: str) -> None:
        """One error, with what failed, where, what was seen, what was expected, and what to do."""
        fault, (method, _, what, where) = FAULTS[name], REQUESTS[phase]
        what, texts, advised = WORDS.get((phase, name), (what, fault.error, fault.next_command))
        words = " ".join(ran.stderr.split())
        assert ran.code == 1, f"{phase}, {name}: exit code {ran.code}: {ran.stderr[-3000:]}"
        assert words.count("error: ") == 1, ran.stderr[-3000:]
        error = words.partition("error: ")[2]
        assert "Traceback" not in ran.stderr
        if fault.action is not None:  # while the server is down, whatever comes first finds it so
            assert error.startswith(what), error
            assert where in error.partition(" observed ")[0], error
        for text in texts:
            assert " ".join(text.split()) in error, error
        advice = error.rpartition(" next ")[2]
        assert advice.startswith(advised), advice
        if name == "403":
            verb = "update" if method == "PUT" else "list"
            assert advice.startswith(f"kubectl auth can-i {verb} {what.split()[-1]}"), advice

    def require_nothing_lost(self) -> None:
        """Record, vault, issuer and roots are whole; what was minted stays what it was; nobody lost a connection."""
        case = self.case
        # 1. The record is there, and still of this rotation, unfinished.
        record = case.record()
        assert (record["rotation_id"], record["finished"]) == (case.rotation, None)
        # 2. At most one root was ever minted; once the record names it, it is in the vault and stays the same.
        case.require_one_new_root_at_most()
        if record["new"]:
            assert [root.fingerprint for root in case.minted_roots()] == [record["new"]]
            assert self.before.get("new") in (None, record["new"])
            self.before["new"] = record["new"]
        # 3. The issuer's Secret holds one certificate, with its own key.
        secret = {k: base64.b64decode(v) for k, v in case.lab.call("GET", ISSUER)["data"].items()}
        certificate = x509.load_pem_x509_certificate(secret["crt.pem"])
        key = load_pem_private_key(secret["key.pem"], None)
        assert certificate.public_key() == key.public_key()
        # 4. The declared roots hold every root that a live proxy presents a leaf of; and nobody was refused.
        bundle = case.lab.call("GET", ROOTS)["data"]["ca-bundle.crt"]
        assert 1 <= len(re.findall("BEGIN CERTIFICATE", bundle)) <= 2
        counts = case.lab.prober()
        assert counts["failed"] == 0, counts["failures"][:3]


def lab_whose_leaves_outlive_a_fault(directory: Path) -> RunningLab:
    """While the API server is away identity reviews no token, and while identity is nobody renews a leaf."""
    options = ("--size", "small", "--leaf-seconds", "60", "--probes-per-second", "30")
    return start_lab(directory, *options, program=("infra.lab",))


def answers(case: Rotations) -> bool:
    """Whether the API server serves requests."""
    try:
        case.lab.call("GET", "/api/v1/namespaces/linkerd")
    except (ApiException, OSError, urllib3.exceptions.HTTPError):
        return False
    return True


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
