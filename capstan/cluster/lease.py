"""The lock: one rotation per trust domain and cluster, whatever started it.

A coordination.k8s.io Lease as client-go's leader election keeps it. Expiry is not believed from a timestamp alone (the
holder's clock may be wrong): a lease that looks expired is taken over only after it has been seen not to change for as
long as it lasts, unless its holder was a process of this machine that is provably gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capstan.cluster.record import NAMESPACE, RecordStore, ensure_namespace, record_name
from capstan.cluster.resources import LEASES
from capstan.errors import CapstanError, Conflict, LockHeld, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

_log = logging.getLogger(__name__)

DURATION: Final = 30.0
_CONFLICTS: Final = 8  # in a row, with growing pauses between them
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"  # metav1.MicroTime


def holder_identity() -> str:
    """`host-hash/pid/nonce`: names this process, and lets a later one on the same machine see that it is gone."""
    return f"{socket.gethostname()}-{_machine()}/{os.getpid()}/{secrets.token_hex(4)}"


def holder_is_gone(identity: str) -> bool:
    """Whether the holder was a process of this machine (and process namespace) that no longer runs.

    False whenever that cannot be known. A process id may have been given to another process since: then it counts as
    running, and the lease simply runs out.
    """
    parts = identity.split("/")
    if len(parts) != 3 or parts[0] != f"{socket.gethostname()}-{_machine()}" or not parts[1].isdigit():
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a zombie still has its id, but will never renew anything
        return Path(f"/proc/{parts[1]}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _machine() -> str:
    """Tells this boot of this machine, and this process namespace, from all others."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with contextlib.suppress(OSError):
            parts.append(Path(path).read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


class LeaseLock:
    """Holds the Lease of a trust domain; a context manager.

    Args:
        duration: Seconds without renewal after which others may take it.
        identity: Who we are; `holder_identity()` if empty.
        now: The wall clock, aware UTC.
    """

    def __init__(
        self,
        cluster: Cluster,
        domain: str,
        *,
        duration: float = DURATION,
        identity: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = cluster
        self.domain = domain
        self.name = record_name(domain)
        self.duration = duration
        self.identity = identity or holder_identity()
        self.transitions = 0
        self._now = now
        self._renewed = 0.0
        self._held = False
        self._lost_to = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LeaseLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def where(self) -> str:
        """For messages."""
        return f"lease {NAMESPACE}/{self.name} in cluster {self.cluster.name}"

    def acquire(self, *, wait: float = 0.0) -> None:
        """Take the lease, and renew it in the background from then on.

        Args:
            wait: Seconds to wait for a holder that is alive (or looks alive) to let go.

        Raises:
            LockHeld: Somebody else holds it; says who and since when.
            Conflict: It changes faster than it can be taken.
        """
        ensure_namespace(self.cluster)
        until, conflicts = self.cluster.clock() + wait, 0
        while True:
            try:
                taken = self._try()
            except Conflict:  # somebody wrote in between: look again
                conflicts += 1
                if conflicts == _CONFLICTS:
                    raise
                self.cluster.sleep(0.05 * conflicts)
                continue
            except LockHeld:
                if self.cluster.clock() >= until:
                    raise
                self.cluster.sleep(min(self.duration / 3, 2.0))
                continue
            self._note(taken)
            self._stop.clear()
            self._thread = threading.Thread(target=self._keep, name=f"lease {self.name}", daemon=True)
            self._thread.start()
            return

    def check(self, *, floor: int = 0) -> None:
        """Refuse to go on if the lease may have been lost; to be called before every write it protects.

        Args:
            floor: Transitions that the protected object was last written under.

        Raises:
            LockHeld: It was lost, or a later holder has written already.
            Unreachable: It was not renewed in time; nobody is known to have it, and it may be renewed yet.
        """
        idle = self.cluster.clock() - self._renewed
        if self._held and not self._lost_to and idle < self.duration and floor <= self.transitions:
            return
        if self._held and not self._lost_to and floor <= self.transitions:
            raise Unreachable(
                "this rotation's lock could not be renewed, so nothing is written",
                where=self.where,
                observed=f"not renewed for {idle:.0f} s",
                expected=f"renewed within {self.duration:.0f} s",
                next_command="look at the API server: kubectl get --raw /readyz",
            )
        raise LockHeld(
            "this rotation no longer holds its lock",
            where=self.where,
            observed=f"held by {self._lost_to or 'nobody, or a later holder'}",
            expected=f"held by {self.identity}, renewed within {self.duration:.0f} s",
            next_command="run the same command again; it goes on from what it observes",
        )

    def confirm(self) -> None:
        """Read the lease now, and refuse to go on unless it is ours: before a step that changes the cluster.

        Raises:
            LockHeld: Somebody else holds it. Unreachable: It was not renewed in time. Others: It cannot be read.
        """
        try:
            holder = str(self.cluster.get(LEASES, self.name, NAMESPACE)["spec"].get("holderIdentity") or "nobody")
        except NotFound:
            holder = "nobody: it was deleted"
        if holder != self.identity:
            self._lost_to = holder
        self.check()

    def release(self) -> None:
        """Stop renewing and give the lease back (as client-go: no holder, no transition)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self.duration)
            self._thread = None
        if not self._held or self._lost_to:
            return
        self._held = False
        with contextlib.suppress(CapstanError):  # it runs out by itself then
            item = self.cluster.get(LEASES, self.name, NAMESPACE)
            if item["spec"].get("holderIdentity") == self.identity:
                item["spec"].update(holderIdentity="", renewTime=self._stamp(), leaseDurationSeconds=1)
                self.cluster.replace(LEASES, item)

    def _try(self) -> Object:
        """One attempt; the lease as written.

        Raises:
            LockHeld: Not free. Conflict: somebody wrote in between.
        """
        try:
            item = self.cluster.get(LEASES, self.name, NAMESPACE)
        except NotFound:
            body = self._body()
            self._renewed = self.cluster.clock()
            return self.cluster.create(LEASES, body)
        spec = item.setdefault("spec", {})
        holder = str(spec.get("holderIdentity") or "")
        if holder == self.identity or not holder:
            return self._take(item, 1 if not holder else 0)
        if holder_is_gone(holder):
            _log.warning("taking over %s: its holder %s, a process of this machine, is gone", self.where, holder)
            return self._take(item, 1)
        if not self._expired(spec):
            raise self._held_by(spec)
        _log.warning("%s looks expired (holder %s); watching whether it still changes", self.where, holder)
        # As long as its holder may believe in it: one of its renewals may have been lost (client-go waits alike).
        self.cluster.sleep(float(spec.get("leaseDurationSeconds") or self.duration))
        again = self.cluster.get(LEASES, self.name, NAMESPACE)
        if again["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            raise self._held_by(again["spec"])
        _log.warning("taking over %s from %s, which stopped renewing it", self.where, holder)
        return self._take(again, 1)

    def _take(self, item: Object, transition: int) -> Object:
        spec = item["spec"]
        spec.update(
            holderIdentity=self.identity,
            leaseDurationSeconds=max(1, round(self.duration)),
            acquireTime=self._stamp(),
            renewTime=self._stamp(),
            leaseTransitions=int(spec.get("leaseTransitions") or 0) + transition,
        )
        self._renewed = self.cluster.clock()  # before the request: never later than the server's own idea of it
        return self.cluster.replace(LEASES, item)

    def _body(self) -> Object:
        """A lease where there is none: nobody had it yet, or somebody has deleted it to be rid of a holder.

        What is written under it must not look older than what the last holder wrote.
        """
        record = RecordStore(self.cluster, self.domain).load()
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/managed-by": "capstan"},
            },
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, round(self.duration)),
                "acquireTime": self._stamp(),
                "renewTime": self._stamp(),
                "leaseTransitions": 1 + (record.fence if record else 0),
            },
        }

    def _note(self, item: Object) -> None:
        self._held = True
        self._lost_to = ""
        self.transitions = int(item["spec"].get("leaseTransitions") or 0)

    def _keep(self) -> None:
        while not self._stop.wait(self.duration / 3):
            began = self.cluster.clock()
            try:
                item = self.cluster.get(LEASES, self.name, NAMESPACE)
                holder = str(item["spec"].get("holderIdentity") or "")
                if holder != self.identity:
                    self._lost_to = holder or "nobody"
                    _log.error("lost %s to %s", self.where, self._lost_to)
                    return
                item["spec"]["renewTime"] = self._stamp()
                self.cluster.replace(LEASES, item)
                self._renewed = began
            except NotFound:
                self._lost_to = "nobody: it was deleted"
                _log.error("lost %s: it was deleted", self.where)  # no traceback: nothing is broken
                return
            except CapstanError as error:
                _log.warning("could not renew %s: %s", self.where, error.observed)

    def _expired(self, spec: Object) -> bool:
        renewed = datetime.fromisoformat(spec.get("renewTime") or spec.get("acquireTime") or "1970-01-01T00:00:00Z")
        seconds = float(spec.get("leaseDurationSeconds") or self.duration)
        return renewed + timedelta(seconds=seconds) < self._now()

    def _held_by(self, spec: Object) -> LockHeld:
        return LockHeld(
            "another rotation is under way",
            where=self.where,
            observed=f"held by {spec.get('holderIdentity')} since {spec.get('acquireTime')}, "
            f"renewed {spec.get('renewTime')}",
            expected="a free lock",
            next_command=f"wait for it to end, or see who it is: kubectl get lease {self.name} -n {NAMESPACE} -o yaml",
        )

    def _stamp(self) -> str:
        return self._now().strftime(_TIME)
