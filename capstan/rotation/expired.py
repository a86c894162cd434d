"""What has expired in a domain of Linkerd: who refuses because of it, what is to be made anew, and what is remembered.

What was found when the replacement began is kept in the record: every later run makes the same things, however far the
mesh has come meanwhile, and the account can say how long each workload was without an identity.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import GateRefused
from capstan.systems.linkerd import expired as linkerds
from capstan.systems.linkerd.adapter import Linkerd
from capstan.trust.expired import Diagnosis, Scope, diagnose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capstan.cluster.record import RotationRecord
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation

FOUND: Final = "expired.json"
"""Note in the record: what had expired when the replacement began."""
ROOTS_AFTER: Final = "roots-after.pem"
"""Note in the record: the roots to be trusted in the end."""
SUPERSEDED: Final = "given up: certificates expired before it ended"
"""`RotationRecord.outcome` of a rotation that had to make room for the replacement of what had expired."""
COMMAND: Final = "capstan rotate --system linkerd --what expired"
_MOST: Final = 2000  # workloads remembered; some 100 bytes each, far below a ConfigMap's 1 MiB


@dataclass(frozen=True, slots=True)
class Found:
    """What had expired when the replacement began.

    Attributes:
        at: When it was looked at, ISO 8601.
        scope: What has to be made anew.
        ended: Sentences: which certificates ended, and when.
        dead: Clusters whose issuer signed nothing any more.
        living: Fingerprints of the roots that had not ended.
        signer: Fingerprint of the root that signs new issuers; empty where a new one is made, or none is needed.
        without: Proxies without a valid identity. proxies: Live proxies.
        since: When the first proxy lost its identity, ISO 8601; empty where none had.
        last: When the last leaf that still lived ends, ISO 8601; empty where none did.
        workloads: Workload -> when the first of its proxies lost its identity, or would, ISO 8601.
    """

    at: str
    scope: Scope
    ended: tuple[str, ...]
    dead: tuple[str, ...]
    living: tuple[str, ...]
    signer: str
    without: int
    proxies: int
    since: str
    last: str
    workloads: dict[str, str]

    def text(self) -> str:
        """As it is kept in the record."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, record: RotationRecord) -> Found | None:
        """What the record of a replacement says; None while nothing was looked at."""
        text = record.notes.get(FOUND)
        if text is None:
            return None
        raw: dict[str, Any] = json.loads(text)
        lists = {name: tuple(raw[name]) for name in ("ended", "dead", "living")}
        return cls(**{**raw, **lists, "scope": Scope(raw["scope"])})

    def told(self) -> str:
        """What is down and since when, for whoever decides. It holds still while the replacement is under way."""
        ended = "; ".join(self.ended)
        if self.scope is Scope.REMNANT:
            return f"{ended}. Nobody is down: a root that lives is trusted beside it."
        if not self.without:
            return (
                f"{ended}. No proxy is without an identity yet, and none can be given another: the last leaf ends at"
                f" {_time(self.last)}, and until then each pod that is started anew cannot speak with those that are"
                " not. Downtime is unavoidable."
            )
        down = f"Downtime is unavoidable, and is happening already: since {_time(self.since)} proxies have no valid"
        return f"{f'{ended}. ' if ended else ''}{down} identity, and refuse each other."


def look(observation: Observation, certificates: Mapping[str, Certificate], now: datetime) -> Diagnosis:
    """What of a domain has expired.

    Args:
        certificates: Every root and issuer met, by fingerprint.
        now: Aware UTC.
    """
    return diagnose(observation, {f: certificate.not_after for f, certificate in certificates.items()}, now)


def remembered(
    found: Diagnosis, scope: Scope, signer: str, certificates: Mapping[str, Certificate],
    living: Sequence[Certificate], now: datetime,
) -> Found:  # fmt: skip
    """A diagnosis as it is kept."""
    return Found(
        at=now.isoformat(),
        scope=scope,
        ended=tuple(_sentences(found, certificates)),
        dead=tuple(found.issuers),
        living=tuple(root.fingerprint for root in living),
        signer=signer,
        without=found.without,
        proxies=found.proxies,
        since=found.since.isoformat() if found.since else "",
        last=found.last_leaf.isoformat() if found.last_leaf else "",
        workloads={name: end.isoformat() for name, end in list(found.ends.items())[:_MOST]},
    )


def require_expired(
    domain: TrustDomain,
    systems: Mapping[str, TrustSystem],
    observation: Observation,
    certificates: Mapping[str, Certificate],
    now: datetime,
) -> None:
    """Refuse to replace anything in a hurry where an ordinary rotation drops nothing.

    Raises:
        GateRefused: Nothing of the mesh's identity has expired; names what is to be run instead.
    """
    if look(observation, certificates, now).anything:
        return
    hooks = [why for system in systems.values() for why in _expired_webhooks(system, now)]
    if hooks:
        raise GateRefused(
            "no anchor, issuer or leaf has expired; webhook certificates have", where=f"trust domain {domain.name}",
            observed="; ".join(hooks), expected="an anchor, an issuer or a leaf that has ended",
            next_command=linkerds.WEBHOOKS,
        )  # fmt: skip
    issuers = {c.issuer.fingerprint: c.issuer.not_after for c in observation.clusters if c.issuer is not None}
    roots = {root: certificates[root].not_after for c in observation.clusters for root in c.bundle}
    first_root, first_issuer = min(roots.values()), min(issuers.values(), default=None)
    alone = first_issuer is not None and first_issuer < first_root and not issuers.keys() & roots.keys()
    raise GateRefused(
        "nothing has expired: an ordinary rotation drops no handshake, this one would",
        where=f"trust domain {domain.name}",
        observed=f"the first anchor ends on {first_root:%F %T}Z, the first issuer on "
        + (f"{first_issuer:%F %T}Z" if first_issuer else "a day that cannot be read"),
        expected="an anchor, an issuer or a leaf that has ended",
        next_command=f"capstan rotate --system linkerd --what {'issuer' if alone else 'anchor'}",
    )


def require_nothing_expired(
    domain: TrustDomain, observation: Observation, certificates: Mapping[str, Certificate], now: datetime
) -> None:
    """Refuse an ordinary rotation where something has expired: its gates wait for handshakes that cannot succeed.

    An anchor that has ended beside a good one stops none: the rotation removes both.

    Raises:
        GateRefused: Names what has ended, and the command that replaces it.
    """
    found = look(observation, certificates, now)
    if not found.down:
        return
    down = [f"{each.workload}: {each.proxies} without a valid identity since {each.since:%F %T}Z"
            for each in found.workloads]  # fmt: skip
    raise GateRefused(
        "something has expired: an ordinary rotation would wait for handshakes that cannot succeed",
        where=f"trust domain {domain.name}",
        observed="\n            ".join([*_sentences(found, certificates), *down[:20]]),
        expected="an anchor, issuers and leaves that have not ended",
        next_command=COMMAND,
    )


def advice(observation: Observation, certificates: Mapping[str, Certificate], now: datetime) -> str:
    """The command for a rotation that is stopped because something has expired meanwhile; empty if nothing has."""
    return f"{COMMAND} (it takes the place of this rotation)" if look(observation, certificates, now).down else ""


def closed(record: RotationRecord) -> GateRefused:
    """Why a replacement that has taken effect cannot be rolled back."""
    go_on = "capstan rotate --what anchor, for another root" if record.finished else f"{COMMAND} --rotation"
    return GateRefused(
        "there is no way back: what there was before has expired",
        where=f"rotation {record.rotation_id}",
        observed="completed" if record.finished else "the new material is in use",
        expected="a rotation from material that was still good",
        next_command=go_on if record.finished else f"go on forward: {go_on} {record.rotation_id}",
    )


def usable_until(lifetime: float, deadline: timedelta, now: datetime) -> datetime:
    """How long a root has to live at least to sign an issuer: two lives of a leaf, and the restarts."""
    return now + 2 * timedelta(seconds=lifetime) + deadline


def _expired_webhooks(system: TrustSystem, now: datetime) -> tuple[str, ...]:
    if not isinstance(system, Linkerd):
        return ()
    return linkerds.expired_webhooks(system.cluster, system.namespace, now)


def _sentences(found: Diagnosis, certificates: Mapping[str, Certificate]) -> list[str]:
    names = {root: certificates[root].common_name or certificates[root].subject for root in found.roots}
    said = [f"trust anchor {names[root]} ({root[:8]}) ended on {end:%F %T}Z" for root, end in found.roots.items()]
    said += [
        f"the issuer of cluster {name} signs nothing that is accepted since {end:%F %T}Z"
        for name, end in found.issuers.items()
    ]
    if not said and found.workloads:
        said = ["anchor and issuer are good, and proxies have missed every renewal of their leaves"]
    return said


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC" if text else "(unknown)"
