"""Restarting workloads, so that their pods are born again and read what is read only at birth.

A restart is named by a *stamp*, written into the pod template: a template that carries the stamp has been restarted for
it, so a second run only waits. The stamp must therefore name the state that is wanted (a rotation, its phase and the
bundle's hash), not the moment.

Owners that no rollout moves (OnDelete, the pods below a StatefulSet's partition, bare ReplicaSets, custom resources)
get their old pods evicted one at a time under their disruption budgets; see `eviction`. A custom resource whose
operator has a way of its own is asked instead; see `custom`. What cannot be restarted at all is returned with its
reason, never forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from capstan.cluster import custom, eviction, rollout
from capstan.cluster.follow import follow
from capstan.cluster.parallel import map_bounded
from capstan.cluster.values import PatchKind
from capstan.cluster.workloads import RESOURCES, WHY_NOT, Method, PodRef, method
from capstan.errors import CapstanError, GateTimedOut, NotFound, Permanent, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.resources import Resource
    from capstan.cluster.values import Object
    from capstan.trust.observation import Owner

STAMP: Final = "capstan.dev/restarted-for"
RESTARTED_AT: Final = "kubectl.kubernetes.io/restartedAt"  # what `kubectl rollout restart` writes; people look for it
WRITE_ATTEMPTS: Final = 6


@dataclass(frozen=True, slots=True)
class Step:
    """News of one owner's restart, for a progress display."""

    owner: Owner
    message: str
    updated: int = 0
    wanted: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Restarted:
    """An owner whose pods are all new and ready.

    Attributes:
        changed: Whether this run wrote the stamp; False if it was there already and was only waited for.
        evicted: Pods evicted by this run.
        seconds: How long this run took over it.
    """

    owner: Owner
    changed: bool
    evicted: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """An owner that was left alone, and why; its pods still hold what they read at their birth."""

    owner: Owner
    reason: str
    pods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Straggler:
    """An owner whose restart did not end, and what holds it up."""

    owner: Owner
    reason: str

    def __str__(self) -> str:
        return f"{self.owner}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RestartReport:
    """What became of every owner that was asked for."""

    restarted: tuple[Restarted, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class _Order:
    """What every worker needs to know."""

    cluster: Cluster
    stamp: str
    until: float
    now: Callable[[], datetime]
    say: Callable[[Step], None]
    verify: Callable[[Owner], None]


def _nothing(_owner: Owner) -> None:
    return


def restart_workloads(
    cluster: Cluster,
    owners: Mapping[Owner, Sequence[PodRef]] | Iterable[Owner],
    stamp: str,
    *,
    seconds: float,
    parallel: int = 4,
    on_progress: Callable[[Step], None] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    verify: Callable[[Owner], None] = _nothing,
    go_on: bool = False,
) -> RestartReport:
    """Restart these owners and wait until every pod of theirs is new and available.

    Args:
        owners: What to restart; as a mapping, with the pods that are known to be old (needed only for custom resources,
            whose template is not ours to read).
        stamp: Names the wanted state; see the module's docstring.
        seconds: How long all of it may take.
        parallel: How many owners are restarted at a time.
        on_progress: Told of each step, from one thread at a time.
        now: The wall clock, for the annotation people read.
        verify: Looks at an owner whose restart has ended; what it raises stops all of it before another is begun.
        go_on: Begin the others even after one did not end: where all of them are down, one more cannot make it worse.

    Raises:
        GateTimedOut: Some did not end in time or their controller gave up; names them with what holds them up. After
            the first such owner no other one is begun, unless `go_on`.
        CapstanError: The API refused.
    """
    pods = owners if isinstance(owners, Mapping) else dict.fromkeys(owners, ())
    halted, lock = threading.Event(), threading.Lock()

    def say(step: Step) -> None:
        if on_progress is not None:
            with lock:
                on_progress(step)

    order = _Order(cluster, stamp, cluster.clock() + seconds, now, say, verify)

    def one(owner: Owner) -> Restarted | Skipped | Straggler:
        if halted.is_set():
            return Straggler(owner, "not begun, because an earlier restart did not end")
        try:
            outcome = _restart(order, owner, pods[owner])
            if isinstance(outcome, Restarted):
                order.verify(owner)
        except eviction.NeverEvicted as never:
            return Skipped(owner, never.reason, tuple(pod.name for pod in pods[owner]))
        except (GateTimedOut, Retryable) as error:
            outcome = Straggler(owner, "; ".join(getattr(error, "stragglers", ())) or f"{error.what}: {error.observed}")
        except CapstanError:
            halted.set()
            raise
        if isinstance(outcome, Straggler) and not go_on:
            halted.set()
        return outcome

    ordered = sorted(pods, key=lambda owner: (owner.namespace, owner.kind, owner.name))
    outcomes = map_bounded(one, ordered, limit=parallel)
    stragglers = [outcome for outcome in outcomes if isinstance(outcome, Straggler)]
    if stragglers:
        raise GateTimedOut(
            f"{len(stragglers)} of {len(outcomes)} restarts did not end",
            stragglers=[str(straggler) for straggler in stragglers],
            where=f"cluster {cluster.name}",
            observed="\n            ".join(str(straggler) for straggler in stragglers[:20]),
            expected=f"every pod new and available within {seconds:.0f} s",
            next_command=f"kubectl get pods -n {stragglers[0].owner.namespace}",
        )
    return RestartReport(
        tuple(outcome for outcome in outcomes if isinstance(outcome, Restarted)),
        tuple(outcome for outcome in outcomes if isinstance(outcome, Skipped)),
    )


def _restart(order: _Order, owner: Owner, pods: Sequence[PodRef]) -> Restarted | Skipped | Straggler:
    began = order.cluster.clock()
    names = tuple(pod.name for pod in pods)
    how = method(owner)
    if how is Method.NONE:
        return Skipped(owner, WHY_NOT[owner.kind], names)
    resource = RESOURCES.get(owner.kind)
    if resource is None:
        return _restart_foreign(order, owner, pods, began)
    try:
        changed, item = _write_stamp(order, resource, owner)
    except NotFound:
        return Skipped(owner, "it is gone, and its pods with it", names)
    if item["spec"].get("paused"):
        return Skipped(owner, "its rollout is paused; `kubectl rollout resume` it first", names)
    order.say(Step(owner, "restarting" if changed else "already restarted for this; waiting for it to end"))
    evicted = 0
    if how is Method.ROLLOUT and rollout.strategy(item) != "OnDelete":
        item = _await_rollout(order, resource, owner)
    if how is Method.EVICT or rollout.strategy(item) == "OnDelete" or rollout.partition(item) > 0:
        old = eviction.old_pods(order.cluster, owner.kind, item, STAMP, order.stamp)
        evicted = eviction.replace_pods(
            order.cluster, old, until=order.until, say=lambda text: order.say(Step(owner, text))
        )
        if how is Method.ROLLOUT:
            _await_rollout(order, resource, owner)
    order.say(Step(owner, "restarted", done=True))
    return Restarted(owner, changed, evicted, order.cluster.clock() - began)


def _restart_foreign(order: _Order, owner: Owner, pods: Sequence[PodRef], began: float) -> Restarted | Skipped:
    """A custom resource: its template is unknown to us, so exactly the pods named as old are replaced."""
    if not pods:
        return Skipped(owner, f"a {owner.kind} is not known here, and none of its pods was named as old")
    live = eviction.still_there(order.cluster, pods)
    evicted = 0
    if live:
        ready = eviction.ready_siblings(order.cluster, live)
        asked = custom.ask(order.cluster, owner, live, order.now())
        if asked:
            order.say(Step(owner, asked))
            eviction.await_replacements(order.cluster, live, ready, order.until)
        else:
            evicted = eviction.replace_pods(
                order.cluster, live, until=order.until, say=lambda text: order.say(Step(owner, text))
            )
    order.say(Step(owner, "restarted", done=True))
    return Restarted(owner, bool(live), evicted, order.cluster.clock() - began)


def _write_stamp(order: _Order, resource: Resource, owner: Owner) -> tuple[bool, Object]:
    """Put the stamp into the template unless it is there; (whether we wrote, the object as it is now).

    The write is the same however often it is made, so it is repeated on conflicts and lost answers.
    """
    cluster = order.cluster
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        item = cluster.get(resource, owner.name, owner.namespace)
        template = item["spec"]["template"].get("metadata") or {}
        if (template.get("annotations") or {}).get(STAMP) == order.stamp:
            return attempt > 1, item
        if item["spec"].get("paused"):
            return False, item
        annotations = {STAMP: order.stamp, RESTARTED_AT: order.now().strftime("%Y-%m-%dT%H:%M:%SZ")}
        body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
        try:
            version = item["metadata"]["resourceVersion"]
            return True, cluster.patch(
                resource, owner.name, body, owner.namespace, kind=PatchKind.MERGE, resource_version=version
            )
        except Retryable as error:
            if attempt == WRITE_ATTEMPTS or cluster.clock() > order.until:
                raise
            cluster.sleep(error.delay or 0.1 * attempt)
    raise AssertionError("unreachable")


def _await_rollout(order: _Order, resource: Resource, owner: Owner) -> Object:
    """Wait by watch until the rollout has ended.

    Raises:
        GateTimedOut: It has not in time, or its controller gave up.
    """
    last = "nothing was heard from it"
    selector = f"metadata.name={owner.name}"
    for event in follow(order.cluster, resource, owner.namespace, until=order.until, field_selector=selector):
        if event.type == "SYNCED" and not event.object["items"]:
            raise _did_not_end(order, owner, "it was deleted meanwhile")
        if event.type not in ("ADDED", "MODIFIED"):
            continue
        state = rollout.judge(owner.kind, event.object)
        if state.done:
            return event.object
        if state.failed:
            raise _did_not_end(order, owner, state.message)
        if state.message != last:
            order.say(Step(owner, state.message, state.updated, state.wanted))
        last = state.message
    raise _did_not_end(order, owner, last)


def _did_not_end(order: _Order, owner: Owner, reason: str) -> GateTimedOut:
    try:
        troubles = eviction.troubles(order.cluster, owner)
    except (Retryable, Permanent):
        troubles = ()
    text = "; ".join((reason, *troubles[:3]))
    return GateTimedOut("a restart did not end", stragglers=(text,), where=str(owner), observed=text)
