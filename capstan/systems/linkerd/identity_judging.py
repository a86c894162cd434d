"""What identity would make of the trust roots and the issuer, judged before it has to read them, replica by replica.

An identity that starts on something it cannot use ends at once (log.Fatalf), and one that runs keeps what it has: a
restart turns the latent fault into an outage. So everything it reads is held against its own rules first.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec

from capstan.cluster.resources import CONFIG_MAPS, SECRETS
from capstan.errors import CapstanError, GateRefused, IssuerNotTaken
from capstan.pki.bundle import Bundle, Reading, lint
from capstan.pki.keys import PrivateKey
from capstan.systems.linkerd.identity import CONTAINER, read_replicas, writer_of
from capstan.systems.linkerd.identity_texts import Word
from capstan.systems.linkerd.layout import IDENTITY, ISSUER, TRUST_ROOTS, TRUST_ROOTS_KEY, Scheme, short
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate
    from capstan.systems.linkerd.identity import Replica
    from capstan.systems.linkerd.observe import View
    from capstan.trust.observation import Fingerprint

HEAR_SECONDS: Final = 90.0
"""How long a replica is listened to before it is started anew: its kubelet's sync period and cache (facts 3)."""
PAUSE: Final = 1.0
CLOSE: Final = timedelta(seconds=5)
"""Ends of issuers that differ by less are taken for the same: a time to live is read with some delay."""
_OVER_ISSUER: Final = (
    "Failed to initialize identity service"  # identity main.go; over the roots: "Failed to read trust"
)


def signing_faults(secret: Object, scheme: Scheme) -> tuple[str, ...]:
    """Why nobody would get a leaf by this Secret, whoever trusts its issuer; empty if nothing speaks against it.

    Not told here: that the certificate has ended, or chains to nothing. Identity refuses a text that it cannot read,
    and a key that is another certificate's (it goes on with the issuer in memory, and could not start again). An RSA
    issuer it takes, says so, and then fails every Certify: it signs with ECDSA and SHA-256 only (facts 12).
    """
    metadata = secret["metadata"]
    place = f"secret {metadata.get('namespace', '')}/{metadata.get('name', ISSUER)}"
    certificate_key, key_key = scheme.keys
    try:
        text = decoded(secret, certificate_key)
        chain = Bundle.parse_lenient(text, f"{place} {certificate_key}").certificates
        key = PrivateKey.parse(decoded(secret, key_key), f"{place} {key_key}")
    except CapstanError as error:
        said = ": ".join(part for part in (error.what, error.observed, error.expected) if part)
        return (f"{place}: identity cannot read it: {said}",)
    faults = [f"{place}: {certificate_key}: {finding}" for finding in unclean(text)]
    if not chain[0].key_matches(key):
        faults.append(f"{place}: {key_key} is not the key of the certificate in {certificate_key}")
    if not isinstance(chain[0].raw.public_key(), ec.EllipticCurvePublicKey):
        faults.append(
            f"{place}: the issuer's key is {chain[0].key_algorithm}; identity loads it and then signs nothing with it"
        )
    return tuple(faults)


def unclean(text: str | bytes) -> list[str]:
    """What in a text ends an identity that starts on it, or makes it read less than is there (facts 1, PEM hygiene)."""
    return [str(finding) for finding in lint(text) if finding.reading is not Reading.OK]


def require_readable(
    cluster: Cluster,
    view: View,
    roots: frozenset[Fingerprint],
    wanted: Fingerprint | None,
    replicas: Sequence[Replica],
    now: datetime,
) -> None:
    """Everything that identity reads when it starts now is good, and the clocks by which it will judge it, too.

    Args:
        roots: The declared trust roots to start on.
        wanted: The issuer that it is to sign with; None takes the configured one as it is.
        replicas: As they run now.

    Raises:
        GateRefused: The bundle is not the wanted one, or identity would end over its text. Nothing was restarted.
        IssuerNotTaken: The same of the issuer.
    """
    namespace, where = view.layout.namespace, f"cluster {view.observation.name}"
    if view.bundle.fingerprints != roots:
        raise GateRefused(
            "the declared trust roots are not the ones to restart for",
            where=f"control plane in namespace {namespace} of {where}",
            observed=short(view.bundle.fingerprints), expected=short(roots), next_command="capstan status",
        )  # fmt: skip
    # 1. The text of the roots, to the byte: identity reads it with another parser than its proxy.
    item = cluster.get(CONFIG_MAPS, TRUST_ROOTS, namespace)
    dirt = unclean(str((item.get("data") or {}).get(TRUST_ROOTS_KEY, "")))
    if dirt:
        raise GateRefused(
            "identity would not start again over the text of the trust roots",
            where=f"configmap {namespace}/{TRUST_ROOTS} in {where}",
            observed="; ".join([*dirt, *([writer] if (writer := writer_of(item)) else [])]),
            expected="certificates in PEM, and nothing before, between or after them that ends a strict reader",
            next_command=f"take what is named out of it (kubectl edit configmap {TRUST_ROOTS} -n {namespace}), then run"
            " the same command again",
        )  # fmt: skip
    # 2. The issuer, with its key.
    secret = cluster.get(SECRETS, ISSUER, namespace)
    issuer = view.observation.issuer
    observed = list(signing_faults(secret, view.layout.scheme))
    if issuer is None:
        observed = observed or list(view.troubles) or ["no readable issuer"]
    elif not issuer.anchors & roots:
        observed.append(f"the configured issuer {issuer.fingerprint[:8]} does not verify against the declared roots")
    elif wanted is not None and issuer.fingerprint != wanted:
        observed.append(f"the configured issuer is {issuer.fingerprint[:16]}, which is not the one to sign with")
    if observed:
        starts = issuer is not None and issuer.anchors & roots
        expected = f"issuer {wanted[:16]}, with its key" if wanted else "an issuer below one of the roots, with its key"
        raise IssuerNotTaken(
            "identity would not sign with the issuer it was given" if starts else "identity would not start again",
            where=f"secret {namespace}/{ISSUER} in {where}",
            observed="; ".join([*observed, *([writer] if (writer := writer_of(secret)) else [])]),
            expected=expected,
            next_command="see who writes to this secret, then run the same command again",
        )  # fmt: skip
    # 3. The clocks that will judge all this.
    if view.issuer is not None:
        require_clocks(replicas, [view.issuer, *view.bundle], view.layout.clock_skew, now, where)


def require_clocks(
    replicas: Iterable[Replica], certificates: Sequence[Certificate], allowance: float, now: datetime, where: str
) -> None:
    """No replica's clock is so far off that its leaves, or its own judgement, would be wrong.

    Ahead by more than identity dates its leaves back, its leaves are not valid yet for everybody else. Behind, it does
    not find valid yet what was made a moment ago: it skips the issuer, and ends where it is started on it.

    Args:
        certificates: What it has to find valid: issuer and roots.
        allowance: Seconds by which identity dates its leaves back (-identity-clock-skew-allowance).

    Raises:
        GateRefused: Names each replica with its node.
    """
    wrong = {}
    for replica in replicas:
        seconds = replica.ahead.total_seconds()
        if seconds > allowance + 1.0:
            wrong[replica.name] = (
                f"its clock is {seconds:.0f} s ahead: its leaves begin in the future (dated back by {allowance:.0f} s)"
            )
        for certificate in certificates:
            if now + replica.ahead < certificate.not_before <= now:
                wrong[replica.name] = (
                    f"its clock is {-seconds:.0f} s behind: {certificate.common_name} {certificate.fingerprint[:8]},"
                    f" which begins at {certificate.not_before:%F %T}Z, is not valid for it yet"
                )
    if wrong:
        raise GateRefused(
            f"the clock of {len(wrong)} identity replica(s) is wrong", where=where,
            observed="; ".join(f"{name}: {why}" for name, why in wrong.items()),
            expected=f"clocks that differ by less than {allowance:.0f} s",
            next_command="set the clock of the nodes named (chronyc tracking), then run the same command again",
        )  # fmt: skip


def hear(
    cluster: Cluster,
    view: View,
    issuer: Certificate,
    written: datetime | None,
    *,
    until: float,
    now: Callable[[], datetime],
) -> tuple[Replica, ...]:
    """Listen until each replica has said that it took the issuer, or has had the time to.

    One that says nothing is no reason to stop: its watcher may be dead (linkerd2 issue 15109); a restart heals that.

    Args:
        written: When the issuer was written, by the API server; None where it does not say, and then nobody is heard.
        until: When to stop listening at the latest, by the cluster's clock.

    Raises:
        IssuerNotTaken: A replica skipped it; names the replica, and its reason in its own words.
    """
    namespace = view.layout.namespace
    if written is None:
        return ()
    until = min(until, cluster.clock() + HEAR_SECONDS - (now() - written).total_seconds())
    while True:
        replicas = read_replicas(cluster, namespace, since=written, now=now)
        if skipped := [replica for replica in replicas if replica.word is Word.SKIPPED]:
            raise IssuerNotTaken(
                f"{len(skipped)} identity replica(s) do not take the issuer",
                where=f"cluster {view.observation.name}",
                observed="; ".join(f"{replica.name}: {replica.said}" for replica in skipped),
                expected=f"every replica to take issuer {issuer.fingerprint[:16]}",
                next_command=f"kubectl rollout restart deployment/{IDENTITY} -n {namespace} (it reads the trust roots"
                " at its start only), then run the same command again",
            )  # fmt: skip
        if all(_heard(replica, issuer, written) for replica in replicas) or cluster.clock() >= until:
            return replicas
        cluster.sleep(PAUSE)


def _heard(replica: Replica, issuer: Certificate, written: datetime) -> bool:
    """Whether there is nothing more to hear of a replica: it took the issuer, was started on it, or cannot be asked."""
    if replica.word is Word.TAKEN or replica.started is None or replica.started > written:
        return True
    return _holds(replica, issuer) or bool(replica.problem)


def _holds(replica: Replica, issuer: Certificate) -> bool:
    return replica.not_after is not None and abs(replica.not_after - issuer.not_after) <= CLOSE


def why_wrong(replica: Replica, issuer: Certificate) -> str:
    """Why a running replica does not sign with this issuer; empty if nothing that it says speaks against it."""
    if replica.crash:
        return f"it does not stay up: {replica.crash}"
    if replica.signs_nothing:
        return f"it has signed nothing, and failed {replica.failed} times for a reason of its own"
    if replica.not_after is not None and not _holds(replica, issuer):
        return (
            f"its issuer ends {replica.not_after:%F %T}Z, issuer {issuer.fingerprint[:8]} on {issuer.not_after:%F %T}Z"
        )
    return ""


def require_no_crash(replicas: Iterable[Replica], where: str, namespace: str) -> None:
    """No replica ends at its start, over what it was given to read.

    Raises:
        IssuerNotTaken: Over the issuer. GateRefused: Over anything else. Both name the replica and its last words.
    """
    crashed = [replica for replica in replicas if replica.crash]
    if not crashed:
        return
    refused = IssuerNotTaken if any(_OVER_ISSUER in replica.crash for replica in crashed) else GateRefused
    raise refused(
        f"{len(crashed)} identity replica(s) end at their start", where=where,
        observed="; ".join(f"{replica.name}: {replica.crash}" for replica in crashed),
        expected="a process that stays up on the trust roots and the issuer that are there",
        next_command=f"kubectl logs -n {namespace} {crashed[0].pod} -c {CONTAINER} --previous",
    )  # fmt: skip
