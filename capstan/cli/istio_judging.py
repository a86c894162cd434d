"""What `capstan istio` says of a mesh that was read: ages of CAs, versions, who holds what. No I/O.

The commands are those of istio/tools' root-transition.sh (release-1.4). Its `check-root` knew no threshold, its
`check-version` compared with nothing, its `verify-certs` saw no proxy's memory, and all of them ended with 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from capstan.systems.istio.versions import follows_changed_roots, refused_version, ztunnel_follows_changed_roots

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.versions import Version
    from capstan.trust.observation import ClusterObservation, Fingerprint, Peer, Signer


class Grade(IntEnum):
    """How good a finding is; the number is the exit code of a command whose worst finding it is."""

    OK = 0
    ERROR = 1
    WARNING = 2

    @property
    def rank(self) -> int:
        """Greater is worse."""
        return {Grade.OK: 0, Grade.WARNING: 1, Grade.ERROR: 2}[self]


def worst(grades: Iterable[Grade]) -> Grade:
    """The worst of these."""
    return max(grades, key=lambda grade: grade.rank, default=Grade.OK)


@dataclass(frozen=True, slots=True)
class Age:
    """One CA certificate and how long it lasts.

    Attributes:
        role: `root` or `signing CA`.
        days: Whole days left; negative once it has ended.
    """

    cluster: str
    role: str
    certificate: Certificate
    days: int
    grade: Grade

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "cluster": self.cluster, "role": self.role, "subject": self.certificate.subject,
            "fingerprint": self.certificate.fingerprint, "notAfter": self.certificate.not_after.isoformat(),
            "daysLeft": self.days, "grade": self.grade.name.lower(),
        }  # fmt: skip


def ages(
    cluster: str, roots: Iterable[Certificate], issuer: Certificate | None, now: datetime, warning: int, error: int
) -> list[Age]:
    """How long a cluster's CA certificates last.

    Args:
        warning: From so many days left on it is a warning.
        error: From so many days left on it is an error.
    """
    found: list[Age] = []
    for role, certificates in (("root", tuple(roots)), ("signing CA", (issuer,) if issuer else ())):
        for certificate in certificates:
            days = (certificate.not_after - now) // timedelta(days=1)
            grade = Grade.ERROR if days <= error else Grade.WARNING if days <= warning else Grade.OK
            if not (role == "signing CA" and any(age.certificate == certificate for age in found)):
                found.append(Age(cluster, role, certificate, days, grade))
    return found


@dataclass(frozen=True, slots=True)
class Running:
    """Processes of one kind and version in one namespace.

    Attributes:
        what: `istiod`, `sidecar`, `gateway`, `waypoint`, `ztunnel` or `unknown`.
        remark: What is wrong with that version here; empty if nothing is.
    """

    cluster: str
    namespace: str
    what: str
    revision: str
    version: str
    count: int
    grade: Grade
    remark: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "cluster": self.cluster, "namespace": self.namespace, "what": self.what, "revision": self.revision,
            "version": self.version, "count": self.count, "grade": self.grade.name.lower(), "remark": self.remark,
        }  # fmt: skip


def versions(cluster: str, view: View) -> list[Running]:
    """Every version that runs, and what a rotation has to know of it."""
    control = {istiod.revision: istiod.version for istiod in view.istiods if istiod.version is not None}
    counted: Counter[tuple[str, str, str, Version | None]] = Counter()
    counted.update((istiod.ref.namespace, "istiod", istiod.revision, istiod.version) for istiod in view.istiods)
    counted.update((proxy.ref.namespace, proxy.kind, proxy.revision, proxy.version) for proxy in view.proxies)
    found = []
    for (namespace, what, revision, version), count in counted.items():
        newest = control.get(revision) or max(control.values(), default=None)
        grade, remark = _version(what, version, newest)
        shown = str(version) if version is not None else "unknown"
        found.append(Running(cluster, namespace, what, revision, shown, count, grade, remark))
    return sorted(found, key=lambda one: (one.what != "istiod", one.namespace, one.what, one.version))


def _version(what: str, version: Version | None, control: Version | None) -> tuple[Grade, str]:
    if version is None:
        return Grade.WARNING, "its image's tag names no version"
    if what == "istiod":
        why = refused_version(version)
        return (Grade.ERROR, why) if why else (Grade.OK, "")
    if what == "ztunnel" and not ztunnel_follows_changed_roots(version):
        return Grade.WARNING, "its DaemonSet has to be restarted after a change of the roots"
    if what != "ztunnel" and not follows_changed_roots(version):
        return Grade.ERROR, "does not load a changed root without a restart: upgrade to 1.0.8, 1.1.8 or later"
    if control is not None and (version.major, version.minor) > (control.major, control.minor):
        return Grade.WARNING, f"newer than its istiod, {control}"
    if control is not None and version.major == control.major and control.minor - version.minor > 1:
        return Grade.WARNING, f"more than one minor version behind its istiod, {control}"
    return Grade.OK, ""


@dataclass(frozen=True, slots=True)
class Held:
    """What one place or process holds, against what the CA's source says.

    Attributes:
        what: `place`, `istiod` or `proxy`.
        problem: Empty if it is as it should be.
    """

    cluster: str
    what: str
    name: str
    problem: str

    @property
    def grade(self) -> Grade:
        """ERROR if there is a problem."""
        return Grade.ERROR if self.problem else Grade.OK

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"cluster": self.cluster, "what": self.what, "name": self.name, "problem": self.problem}


def held(observed: ClusterObservation, now: datetime, troubles: Sequence[str] = ()) -> list[Held]:
    """Every place, every istiod and every proxy, judged. That there is none to judge is a problem of its own."""
    name, bundle = observed.name, observed.bundle
    issuer = observed.issuer.fingerprint if observed.issuer else None
    found = [Held(name, "place", trouble, "cannot be read") for trouble in troubles]
    found += [Held(name, "place", place, _roots(roots, bundle)) for place, roots in observed.declared]
    found += [Held(name, "istiod", signer.name, _signer(signer, bundle, issuer)) for signer in observed.signers]
    found += [Held(name, "proxy", f"{peer.namespace}/{peer.pod}", _peer(peer, bundle, now)) for peer in observed.peers]
    if not observed.peers:
        found.append(Held(name, "proxy", "-", "no proxy was found: nothing is verified"))
    return found


def _roots(roots: frozenset[Fingerprint] | None, bundle: frozenset[Fingerprint]) -> str:
    if roots is None:
        return "its roots cannot be read"
    missing, more = bundle - roots, roots - bundle
    parts = [f"lacks {_short(missing)}"] if missing else []
    parts += [f"also trusts {_short(more)}"] if more else []
    return "; ".join(parts)


def _signer(signer: Signer, bundle: frozenset[Fingerprint], issuer: Fingerprint | None) -> str:
    if signer.issuer is None:
        return signer.unreadable or "it was not seen to sign"
    parts = [] if signer.issuer == issuer else [f"signs by {signer.issuer[:16]}, not by the configured CA"]
    parts += [roots] if (roots := _roots(signer.roots, bundle)) else []
    return "; ".join(parts)


def _peer(peer: Peer, bundle: frozenset[Fingerprint], now: datetime) -> str:
    if peer.leaf is None or peer.trusts is None:
        return peer.unreadable or "it cannot be read"
    parts = [roots] if (roots := _roots(peer.trusts, bundle)) else []
    if not peer.leaf.anchors & bundle:
        parts.append("its leaf chains to none of these roots")
    if peer.leaf.not_after <= now:
        parts.append(f"its leaf ended at {peer.leaf.not_after:%Y-%m-%d %H:%M:%S} UTC")
    return "; ".join(parts)


def _short(roots: frozenset[Fingerprint]) -> str:
    return ", ".join(sorted(root[:16] for root in roots))
