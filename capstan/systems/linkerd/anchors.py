"""Writing the trust roots, in every place Linkerd keeps them, or saying who has to.

Three places hold them and nothing keeps them in step: the ConfigMap that proxies and identity read at their start,
`linkerd-config` that most of `linkerd check` reads, and, after a CLI install, the Secret that the next
`linkerd upgrade` starts from. A rotation that forgets one of them comes undone at the next upgrade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cluster.resources import CONFIG_MAPS, SECRETS
from capstan.errors import CapstanError, GateRefused
from capstan.pki.bundle import Bundle, Reading, lint
from capstan.systems.base import Change
from capstan.systems.linkerd.layout import (
    ANCHORS,
    CONFIG,
    CONFIG_KEY,
    OVERRIDES,
    OVERRIDES_KEY,
    TRUST_ROOTS,
    TRUST_ROOTS_KEY,
    Tool,
    owner_of,
    short,
)
from capstan.systems.linkerd.owners import remedy, require_ours, require_release_agrees
from capstan.systems.linkerd.secrets import decoded, encoded
from capstan.systems.linkerd.values import get_value, set_value

if TYPE_CHECKING:
    from collections.abc import Collection

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.linkerd.observe import View
    from capstan.trust.observation import Fingerprint


def ensure_bundle(
    cluster: Cluster, namespace: str, roots: Bundle, *, accept: Collection[Tool] = ()
) -> tuple[Change, ...]:
    """Make every declared place hold exactly these roots.

    A place is left alone when it holds the same set, and its text is one that every reader understands. All places are
    looked at, and their owners asked about, before the first is written.

    Args:
        accept: Tools whose objects may be written nevertheless, because somebody has made sure that the same roots are
            in the tool's source.

    Raises:
        OwnedElsewhere: A tool would revert the write, or its source (a Helm release) says otherwise and would take it
            back later; carries the change to commit there. Nothing was written.
        Conflict: Somebody wrote in between.
    """
    overrides = cluster.find(SECRETS, OVERRIDES, namespace)
    config = cluster.find(CONFIG_MAPS, CONFIG, namespace)
    trust_roots = cluster.get(CONFIG_MAPS, TRUST_ROOTS, namespace)
    # 1. What has to change.
    plans = [_plan_roots(trust_roots, roots)]
    if config is not None:
        text = str((config.get("data") or {}).get(CONFIG_KEY, ""))
        plans.append(_plan_values(config, text, f"configmap {namespace}/{CONFIG}", roots))
    if overrides is not None:
        text = decoded(overrides, OVERRIDES_KEY).decode("utf-8")
        plans.append(_plan_values(overrides, text, f"secret {namespace}/{OVERRIDES}", roots))
    # 2. May we?
    for plan in plans:
        if plan.why:
            change = remedy(plan.item, owner_of(plan.item), roots)
            require_ours(cluster, plan.item, plan.place, change, accept, cli_install=overrides is not None)
    require_release_agrees(cluster, trust_roots, roots, remedy(trust_roots, Tool.HELM, roots), accept)
    # 3. Write, each under the version it was read with; the place that proxies read comes first.
    changes = []
    for plan in plans:
        if not plan.why:
            version = str(plan.item["metadata"].get("resourceVersion", ""))
            changes.append(Change(plan.place, plan.before, plan.before, False, version, version))
            continue
        if plan.place.endswith(f"/{TRUST_ROOTS}"):
            written = _with_data(plan.item, {TRUST_ROOTS_KEY: plan.text})
            after = cluster.replace(CONFIG_MAPS, written)
        elif plan.place.endswith(f"/{CONFIG}"):
            after = cluster.replace(CONFIG_MAPS, _with_data(plan.item, {CONFIG_KEY: plan.text}))
        else:
            after = cluster.replace(SECRETS, _with_data(plan.item, {OVERRIDES_KEY: encoded(plan.text)}))
        changes.append(
            Change(
                plan.place, plan.before, tuple(certificate.fingerprint for certificate in roots), True,
                str(plan.item["metadata"]["resourceVersion"]), str(after["metadata"]["resourceVersion"]), plan.why,
            )
        )  # fmt: skip
    return tuple(changes)


def removes_roots(cluster: Cluster, namespace: str, roots: Bundle) -> bool:
    """Whether writing these roots would take away one that is declared now."""
    item = cluster.get(CONFIG_MAPS, TRUST_ROOTS, namespace)
    text = str((item.get("data") or {}).get(TRUST_ROOTS_KEY, ""))
    try:
        return bool(Bundle.parse_lenient(text, TRUST_ROOTS).fingerprints - roots.fingerprints)
    except CapstanError:
        return False  # nothing that can be read is taken away


def require_nobody_needs_others(view: View, roots: Bundle) -> None:
    """Refuse roots to which the configured issuer, or a leaf that is presented now, does not chain.

    The last line of defence, on positive evidence only: who could not be read is the business of the gate before.

    Raises:
        GateRefused: Names who would not be trusted any more. Nothing was written.
    """
    kept = roots.fingerprints
    issuer = view.observation.issuer
    needing = [
        f"{peer.name} presents a leaf of {short(peer.leaf.anchors)}"
        for peer in view.observation.peers
        if peer.leaf is not None and not peer.leaf.anchors & kept
    ]
    # An issuer that chains to nothing declared now is broken already, and this write does not make it worse.
    if issuer is not None and issuer.anchors & view.bundle.fingerprints and not issuer.anchors & kept:
        needing.insert(0, f"the configured issuer {issuer.fingerprint[:8]} chains to {short(issuer.anchors)}")
    if needing:
        raise GateRefused(
            f"{len(needing)} still need a root that would be taken away",
            where=f"configmap {view.layout.namespace}/{TRUST_ROOTS} in cluster {view.observation.name}",
            observed="\n            ".join(needing[:20]),
            expected=f"everything that is presented to chain to {short(kept)}",
            next_command="capstan status, and wait until it names nobody",
        )


class _Plan:
    """What one place holds and has to hold."""

    def __init__(self, item: Object, place: str, before: tuple[Fingerprint, ...], why: str, text: str) -> None:
        self.item = item
        self.place = place
        self.before = before
        self.why = why
        self.text = text


def _plan_roots(item: Object, roots: Bundle) -> _Plan:
    text = str((item.get("data") or {}).get(TRUST_ROOTS_KEY, ""))
    place = f"configmap {item['metadata']['namespace']}/{TRUST_ROOTS}"
    before, why = _compare(text, place, roots)
    return _Plan(item, place, before, why, roots.pem())


def _plan_values(item: Object, text: str, place: str, roots: Bundle) -> _Plan:
    """A place that carries Helm values. One that has no value for the roots (`identity.externalCA`) declares none, and
    none is put there."""
    value = get_value(text, (ANCHORS,), place) if text else None
    if not value:
        return _Plan(item, place, (), "", text)
    before, why = _compare(value, place, roots)
    return _Plan(item, place, before, why, set_value(text, (ANCHORS,), roots.pem(), place) if why else text)


def _compare(text: str, place: str, roots: Bundle) -> tuple[tuple[Fingerprint, ...], str]:
    """Fingerprints found, and why the text has to be written anew; empty if it has not."""
    try:
        found = Bundle.parse_lenient(text, place)
    except CapstanError as error:
        return (), f"what was there cannot be read: {error.what}"
    before = tuple(certificate.fingerprint for certificate in found)
    if found.fingerprints != roots.fingerprints:
        return before, "it held other roots"
    unclean = [finding for finding in lint(text) if finding.reading is not Reading.OK]
    return before, "; ".join(str(finding) for finding in unclean)


def _with_data(item: Object, data: dict[str, str]) -> Object:
    return {**item, "data": {**(item.get("data") or {}), **data}}
