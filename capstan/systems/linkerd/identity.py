"""Each replica of linkerd-identity, by its own word: which issuer it holds, what its clock says, why it crashed.

No Event is asked for: identity loses them under load, and `IssuerUpdated` follows content that signs nothing, too
(facts 12). A replica's log has one line for every reload, its metrics say when the issuer in memory ends (2.18 and
later), and its HTTP answers carry its clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.portforward import HttpAnswer, http_fetch
from capstan.cluster.resources import PODS
from capstan.errors import CapstanError, Retryable
from capstan.systems.linkerd.identity_texts import (
    Word,
    certificates_signed,
    clock_difference,
    fatal_words,
    issuer_end,
    last_word,
)
from capstan.systems.linkerd.layout import COMPONENT_LABEL, MESH_LABEL, PROXY

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

CONTAINER: Final = "identity"
ADMIN_PORT: Final = 9990
ADMIN_PORT_NAMES: Final = ("ident-admin", "admin-http")
"""Since 2.19, and before (charts/linkerd-control-plane/templates/identity.yaml at the tags)."""
CONCURRENCY: Final = 8
TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Replica:
    """One identity process.

    Attributes:
        pod: Its pod's name.
        not_after: When the issuer in its memory ends, by its own account; None before 2.18.
        problem: Why it could not be asked; empty if it was.
        node: Where it runs.
        started: When the process began, by its node's clock; None while it does not run.
        word: The last thing that it said of its issuer.
        said: The line, as it stands in its log.
        ahead: How far its clock is ahead of ours at least; negative where it is behind; zero where neither is sure.
        signed: How many certificates it has signed since its start; None if it does not say.
        failed: How many it could not sign for a reason of its own (gRPC Internal, Unknown).
        crash: Why it does not stay up; empty if it does.
    """

    pod: str
    not_after: datetime | None = None
    problem: str = ""
    node: str = ""
    started: datetime | None = None
    word: Word = Word.NOTHING
    said: str = ""
    ahead: timedelta = timedelta()
    signed: int | None = None
    failed: int = 0
    crash: str = ""

    @property
    def name(self) -> str:
        """`replica linkerd-identity-5d8f on node a`."""
        return f"replica {self.pod}" + (f" on node {self.node}" if self.node else "")

    @property
    def signs_nothing(self) -> bool:
        """Whether it was asked for certificates and could make none: not every issuer that loads can sign."""
        return self.failed > 0 and self.signed == 0


def identity_pods(cluster: Cluster, namespace: str) -> tuple[Object, ...]:
    """The pods of linkerd-identity that are to stay."""
    selector = f"{MESH_LABEL}={namespace},{COMPONENT_LABEL}=identity"
    found = cluster.list(PODS, namespace, label_selector=selector).items
    return tuple(
        pod
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    )


def read_replicas(
    cluster: Cluster,
    namespace: str,
    *,
    since: datetime | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    timeout: float = TIMEOUT,
) -> tuple[Replica, ...]:
    """Ask every identity process.

    Args:
        since: From when on words count; None asks for none.
        now: The wall clock, against which theirs are held.
        timeout: Seconds for each question.

    Raises:
        CapstanError: The pods cannot be listed. That one of them cannot be asked is in its `problem`.
    """

    def read(pod: Object) -> Replica:
        return read_replica(cluster, pod, since=since, now=now, timeout=timeout)

    return tuple(map_bounded(read, identity_pods(cluster, namespace), limit=CONCURRENCY))


def read_replica(
    cluster: Cluster, pod: Object, *, since: datetime | None, now: Callable[[], datetime], timeout: float = TIMEOUT
) -> Replica:
    """Ask one identity process; what cannot be had of it is left out, and why."""
    namespace, name = str(pod["metadata"]["namespace"]), str(pod["metadata"]["name"])
    node = str((pod.get("spec") or {}).get("nodeName") or "")
    state = container_state(pod, CONTAINER)
    started = started_at(pod, CONTAINER)
    crash = _crash(cluster, pod, state)
    if started is None:
        return Replica(name, problem="" if crash else "it is not running", node=node, crash=crash)
    problems = []
    word, said = Word.NOTHING, ""
    if since is not None:
        try:
            word, said = last_word(cluster.logs(namespace, name, CONTAINER, since=since))
        except CapstanError as error:
            problems.append(f"{error.what}: {error.observed}")
    not_after: datetime | None = None
    ahead, signed, failed = timedelta(), None, 0
    try:
        before = now()
        answer = _metrics(cluster, namespace, name, admin_port(pod), timeout)
        after = now()
        ahead = clock_difference(answer.headers.get("date", ""), before, after)
        text = answer.body.decode("utf-8", "replace") if answer.status == 200 else ""
        not_after = issuer_end(text, after + ahead)
        signed, failed = certificates_signed(text)
        if answer.status != 200:
            problems.append(f"GET :{admin_port(pod)}/metrics answers {answer.status}")
    except CapstanError as error:
        problems.append(f"{error.what}: {error.observed}")
    return Replica(name, not_after, "; ".join(problems), node, started, word, said, ahead, signed, failed, crash)


def admin_port(pod: Object) -> int:
    """Port of identity's own HTTP server, by the names that the charts give it."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        if container.get("name") == CONTAINER:
            for port in container.get("ports") or []:
                if port.get("name") in ADMIN_PORT_NAMES:
                    return int(port["containerPort"])
    return ADMIN_PORT


def container_state(pod: Object, name: str) -> dict[str, Any]:
    """The status entry of a container; empty if there is none."""
    status = pod.get("status") or {}
    for group in ("containerStatuses", "initContainerStatuses"):
        for entry in status.get(group) or []:
            if entry.get("name") == name:
                return dict(entry)
    return {}


def started_at(pod: Object, name: str) -> datetime | None:
    """When the container's process began; None while it does not run."""
    running = (container_state(pod, name).get("state") or {}).get("running") or {}
    text = running.get("startedAt")
    return datetime.fromisoformat(text) if text else None


def why_apart(pod: Object, roots_written: datetime | None) -> str:
    """Why the identity process may hold other roots than the proxy beside it; empty if both read the same text.

    Both read the roots once, at their start. Born with their pod they have read the same; a container that was started
    again alone may have read another text, and what identity has in memory nothing tells (facts 0.2).

    Args:
        roots_written: When the trust roots' ConfigMap was last written, as far as the API server says.
    """
    own, beside = container_state(pod, CONTAINER), container_state(pod, PROXY)
    if not own.get("restartCount") and not beside.get("restartCount"):
        return ""
    began, proxy_began = started_at(pod, CONTAINER), started_at(pod, PROXY)
    if began is None or proxy_began is None:
        return ""  # one of them has yet to read
    if roots_written is None or max(began, proxy_began) < roots_written:
        return ""
    born = (pod.get("status") or {}).get("startTime")
    if born and datetime.fromisoformat(born) > roots_written:
        return ""  # whatever was started in it, and how often, there was but one text to read
    # A container that is started again reads the mounted text, which may be as old as the kubelet's last look at it.
    if min(began, proxy_began) > roots_written + KUBELET_DELAY:
        return ""
    return (
        f"its identity process began at {began:%F %T}Z, its proxy at {proxy_began:%F %T}Z, and the trust roots were"
        f" written at {roots_written:%F %T}Z: identity may hold other roots than its proxy says"
    )


KUBELET_DELAY: Final = timedelta(seconds=120)
"""A mounted ConfigMap or Secret is as old as this at most: the kubelet's sync period, and the life of its cache."""


def written_at(item: Object) -> datetime | None:
    """When an object was last written, by what the API server keeps of its managers; None if it keeps nothing."""
    times = [entry.get("time") for entry in item["metadata"].get("managedFields") or []]
    times.append(item["metadata"].get("creationTimestamp"))
    return max((datetime.fromisoformat(text) for text in times if text), default=None)


def writer_of(item: Object) -> str:
    """Who wrote an object last, and when, for a person; empty if the API server does not keep it."""
    entries = [entry for entry in item["metadata"].get("managedFields") or [] if entry.get("time")]
    if not entries:
        return ""
    last = max(entries, key=lambda entry: str(entry["time"]))
    return f"last written by {last.get('manager') or 'somebody'} at {last['time']}"


def _metrics(cluster: Cluster, namespace: str, pod: str, port: int, timeout: float) -> HttpAnswer:
    try:
        return http_fetch(cluster, namespace, pod, port, "/metrics", timeout=timeout)
    except Retryable:
        return http_fetch(cluster, namespace, pod, port, "/metrics", timeout=timeout)


def _crash(cluster: Cluster, pod: Object, state: dict[str, Any]) -> str:
    """Why the identity container does not stay up: its last words before it ended."""
    waiting = (state.get("state") or {}).get("waiting") or {}
    ended = (state.get("lastState") or {}).get("terminated") or (state.get("state") or {}).get("terminated") or {}
    looping = waiting.get("reason") == "CrashLoopBackOff" or bool((state.get("state") or {}).get("terminated"))
    if not looping or not ended or not ended.get("exitCode"):
        return ""
    namespace, name = str(pod["metadata"]["namespace"]), str(pod["metadata"]["name"])
    words = ""
    for previous in (False, True):  # while it waits for its next start, the ended instance is the current one
        try:
            words = fatal_words(cluster.logs(namespace, name, CONTAINER, previous=previous))
        except CapstanError:
            continue
        if words:
            break
    return f"exit code {ended['exitCode']}" + (f": {words}" if words else "")
