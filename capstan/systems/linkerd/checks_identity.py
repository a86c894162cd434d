"""Category `linkerd-identity`: the trust anchors and the issuer, as identity and the proxies will read them.

Linkerd's own check reads the anchors from `linkerd-config` (or, with scheme kubernetes.io/tls, from `ca.crt` in the
issuer's Secret), which nothing that runs ever looks at (facts 0.1). Ours reads the ConfigMap that identity and the
proxies start from, and says where the other reading would come to another verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.errors import CapstanError
from capstan.pki.bundle import Bundle, Reading, lint
from capstan.pki.keys import PrivateKey
from capstan.pki.rules import issuer_findings, root_findings
from capstan.pki.verify import verify_issuer
from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_hooks import CERT_MANAGER_ANNOTATION
from capstan.systems.linkerd.checks_report import (
    IDENTITY,
    each,
    expiring,
    listed,
    renewed_in_time,
    result,
    skipped,
    theirs,
    validity,
)
from capstan.systems.linkerd.layout import ISSUER, TRUST_ROOTS, Scheme, short
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.pki.rules import RuleFinding
    from capstan.systems.linkerd.checks_evidence import Evidence

SUPPORTED: Final = "supported crypto algorithm"


def identity_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """All of the category, in Linkerd's order."""
    now = evidence.now
    chain, problems = _issuer(evidence)
    their_anchors, their_problem = _their_anchors(evidence)
    yield _config(evidence, problems, their_problem)
    # 1. The anchors.
    yield _anchors(
        evidence, their_anchors, "trust anchors are using supported crypto algorithm",
        "l5d-identity-trustAnchors-use-supported-crypto", Severity.FATAL,
        lambda root: _unsupported(root_findings(root, now)),
    )  # fmt: skip
    yield _in_time(evidence, chain, their_anchors)
    yield _anchors(
        evidence, their_anchors, "trust anchors are valid for at least 60 days",
        "l5d-identity-trustAnchors-not-expiring-soon", Severity.WARNING, lambda root: expiring(root, now),
    )  # fmt: skip
    # 2. The issuer.
    yield _of_issuer(
        chain, "issuer cert is using supported crypto algorithm", "l5d-identity-issuer-cert-uses-supported-crypto",
        Severity.FATAL, lambda cert: _unsupported(issuer_findings(cert, now)),
    )  # fmt: skip
    yield _of_issuer(
        chain, "issuer cert is within its validity period", "l5d-identity-issuer-cert-is-time-valid", Severity.FATAL,
        lambda cert: validity(cert, now),
    )  # fmt: skip
    yield _issuer_ends(evidence, chain)
    yield _chains(evidence, chain, their_anchors)


def _issuer(evidence: Evidence) -> tuple[tuple[Certificate, ...], list[str]]:
    """The issuer's chain as identity reads it, and what is wrong with the Secret."""
    if evidence.issuer_secret.problem:
        return (), [evidence.issuer_secret.problem]
    scheme, secret = evidence.view.layout.scheme, evidence.issuer_secret.value
    names = dict(zip(scheme.keys, ("certificate", "key"), strict=True))
    data = secret.get("data") or {}
    missing = [
        f"key {key} containing the issuer {what} needs to exist in secret {ISSUER}: identity's flag"
        f" -identity-scheme={scheme} reads it (found: {', '.join(sorted(data)) or 'none'})"
        for key, what in names.items()
        if key not in data
    ]
    if missing:
        return (), missing
    certificate_key, key_key = scheme.keys
    problems = []
    chain: tuple[Certificate, ...] = ()
    try:
        text = decoded(secret, certificate_key)
        problems += [f"{certificate_key}: {line}" for line in _unclean(text)]
        chain = Bundle.parse_lenient(text, f"secret {ISSUER}").certificates
        if not chain[0].key_matches(PrivateKey.parse(decoded(secret, key_key), f"secret {ISSUER}")):
            problems.append(f"{key_key} is not the key of the certificate in {certificate_key}")
    except CapstanError as error:
        problems.append(": ".join(part for part in (error.what, error.observed) if part))
    return chain, problems


def _their_anchors(evidence: Evidence) -> tuple[Bundle, str]:
    """The anchors that `linkerd check` judges, or why it cannot read them."""
    scheme = str(((evidence.values.get("identity") or {}).get("issuer") or {}).get("scheme") or Scheme.LINKERD)
    if scheme == Scheme.LINKERD:
        place, text = "linkerd-config", evidence.anchors_text
        if not evidence.has_config:
            return Bundle(), "there is no linkerd-config"
    else:
        place = f"ca.crt of secret {ISSUER}"
        if "ca.crt" not in (evidence.issuer_secret.value.get("data") or {}):
            return Bundle(), f"key ca.crt containing the trust anchors needs to exist in secret {ISSUER}"
        try:
            text = decoded(evidence.issuer_secret.value, "ca.crt").decode("utf-8", "replace")
        except CapstanError as error:
            return Bundle(), f"{place}: {error.what}"
    if not text.strip():
        return Bundle(), ""  # Go's decoder makes an empty list of an empty text: every check of anchors passes
    if unclean := _unclean(text):
        return Bundle(), f"{place}: not a PEM certificate: {unclean[0]}"
    try:
        return Bundle.parse_lenient(text, place), ""
    except CapstanError as error:
        return Bundle(), f"{place}: {error.what}"


def _unclean(text: str | bytes) -> list[str]:
    """What Linkerd's PEM reader dies of, or silently drops (facts 1, "PEM hygiene")."""
    return [str(finding) for finding in lint(text) if finding.reading is not Reading.OK]


def _config(evidence: Evidence, problems: list[str], their_problem: str) -> CheckResult:
    about = IDENTITY, "certificate config is valid", "l5d-identity-cert-config-valid", Severity.FATAL
    layout = evidence.view.layout
    scheme = str(((evidence.values.get("identity") or {}).get("issuer") or {}).get("scheme") or Scheme.LINKERD)
    notes = []
    if evidence.has_config and scheme != layout.scheme:
        notes.append(f"linkerd-config says issuer scheme {scheme}, but identity runs with {layout.scheme}")
    if their_problem and not problems:
        notes.append(theirs(their_problem, "identity and the proxies do not read the anchors there"))
        if layout.scheme is Scheme.KUBERNETES:
            notes.append("`linkerd upgrade` needs ca.crt too")
    if problems or not notes:
        return result(*about, listed("", problems), note="\n".join(notes))
    return result(*about, listed("What runs can be read, the tools that only look cannot:", notes), harmless=True)


def _anchors(
    evidence: Evidence, their_anchors: Bundle, description: str, anchor: str, level: Severity,
    judge: Callable[[Certificate], str],
) -> CheckResult:  # fmt: skip
    found = each(evidence.view.bundle, judge)
    return result(
        IDENTITY, description, anchor, level, listed("", found),
        note=_other_verdict(evidence, their_anchors, found, each(their_anchors, judge)),
    )  # fmt: skip


def _other_verdict(evidence: Evidence, their_anchors: Bundle, found: list[str], found_by_them: list[str]) -> str:
    """The difference, where other anchors give another verdict."""
    if bool(found) == bool(found_by_them) or their_anchors.fingerprints == evidence.view.bundle.fingerprints:
        return ""
    because = f"it judges the anchors of linkerd-config, {short(their_anchors.fingerprints)}, not of {TRUST_ROOTS}"
    return theirs(f"× {found_by_them[0]}" if found_by_them else "√", because)


def _in_time(evidence: Evidence, chain: tuple[Certificate, ...], their_anchors: Bundle) -> CheckResult:
    """An expired anchor that nobody's chain needs is untidy, and nothing more."""

    def judge(root: Certificate) -> str:
        return validity(root, evidence.now)

    found = each(evidence.view.bundle, judge)
    valid = [root for root in evidence.view.bundle if not judge(root)]
    harmless = bool(found) and _all_chain_to(evidence, chain, valid)
    note = _other_verdict(evidence, their_anchors, found, each(their_anchors, judge))
    if harmless:
        note = theirs(
            "×, and none of the checks after it",
            "one expired anchor is enough for it; here issuer and every live leaf chain to a valid one",
        )
    return result(
        IDENTITY, "trust anchors are within their validity period", "l5d-identity-trustAnchors-are-time-valid",
        Severity.FATAL, listed("", found), note=note, harmless=harmless,
    )  # fmt: skip


def _all_chain_to(evidence: Evidence, chain: tuple[Certificate, ...], roots: list[Certificate]) -> bool:
    if not chain or not roots or _why_not(chain, roots, evidence.now):
        return False
    valid = {root.fingerprint for root in roots}
    return all(proxy.peer.leaf is not None and proxy.peer.leaf.anchors & valid for proxy in evidence.view.proxies)


def _of_issuer(
    chain: tuple[Certificate, ...], description: str, anchor: str, level: Severity, judge: Callable[[Certificate], str]
) -> CheckResult:
    about = IDENTITY, description, anchor, level
    if not chain:
        return skipped(*about, "the issuer's certificate cannot be read (see: certificate config is valid)")
    return result(*about, listed("", each(chain[:1], judge)))


def _issuer_ends(evidence: Evidence, chain: tuple[Certificate, ...]) -> CheckResult:
    """The documented set-up with cert-manager has an issuer of 48 hours: that it ends soon says nothing there."""
    about = (
        IDENTITY, "issuer cert is valid for at least 60 days", "l5d-identity-issuer-cert-not-expiring-soon",
        Severity.WARNING,
    )  # fmt: skip
    if not chain:
        return skipped(*about, "the issuer's certificate cannot be read (see: certificate config is valid)")
    found = each(chain[:1], lambda cert: expiring(cert, evidence.now))
    annotations = evidence.issuer_secret.value["metadata"].get("annotations") or {}
    if found and CERT_MANAGER_ANNOTATION in annotations:
        if renewed_in_time(chain[0], evidence.now):
            because = "cert-manager renews it, and more than a third of its life is left"
            return result(*about, "", note=theirs(f"‼ {found[0]}", because))
        found.append(f"cert-manager should have renewed it: kubectl describe certificate -n {evidence.namespace}")
    return result(*about, listed("", found))


def _chains(evidence: Evidence, chain: tuple[Certificate, ...], their_anchors: Bundle) -> CheckResult:
    about = (
        IDENTITY, "issuer cert is issued by the trust anchor", "l5d-identity-issuer-cert-issued-by-trust-anchor",
        Severity.ERROR,
    )  # fmt: skip
    if not chain:
        return skipped(*about, "the issuer's certificate cannot be read (see: certificate config is valid)")
    problem = _why_not(chain, evidence.view.bundle, evidence.now)
    note = ""
    if their_anchors.certificates and their_anchors.fingerprints != evidence.view.bundle.fingerprints:
        their_verdict = _why_not(chain, their_anchors, evidence.now)
        if bool(problem) != bool(their_verdict):
            because = f"it verifies against {short(their_anchors.fingerprints)} of linkerd-config, not {TRUST_ROOTS}"
            note = theirs("×" if their_verdict else "√", because)
    return result(*about, problem, note=note)


def _why_not(chain: tuple[Certificate, ...], roots: Iterable[Certificate], now: datetime) -> str:
    try:
        verify_issuer(chain[0], roots, now, chain[1:])
    except CapstanError as error:
        return f"{error.what}: {error.observed}"
    return ""


def _unsupported(findings: Iterable[RuleFinding]) -> str:
    return "; ".join(finding.observed for finding in findings if SUPPORTED in finding.rule)
