"""What a deployment's page in Prefect says: what a run does, when, who is asked, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from capstan.config import System, TrustDomain
from capstan.window import MaintenanceWindow
from deployments.timetable import Start


@dataclass(frozen=True, slots=True)
class About:
    """What the descriptions of a domain's deployments are made of."""

    words: str
    domain: TrustDomain
    window: MaintenanceWindow
    time_zone: str
    start: Start | None


_SYSTEMS = {System.LINKERD: "Linkerd", System.ISTIO: "Istio", System.AKS_ISTIO: "AKS Istio add-on"}


def rotate(about: About) -> str:
    """Of the rotation."""
    return _page(
        about,
        f"Rotates the trust anchor and the issuer of trust domain **{about.domain.name}** ({_clusters(about.domain)}) "
        "without dropping a handshake: prepare, trust, issue, distrust. Each phase begins when every live proxy is "
        "seen to be ready for it. A run that is killed goes on from what it observes when it is run again.",
        f"- **Begins** {_begins(about)}; or press *Run*. One rotation of a domain at a time: a second run is refused.",
        _asks(about, _phases(about.domain)),
        *_keys(about.domain),
        f"- **Back**: `{about.domain.system.value}-roll-back/{about.domain.name}`, in every phase before the old key "
        "is destroyed.",
        "- **Look**: `capstan status`, the run's artifacts, and `capstan evidence verify` afterwards.",
    )


def intermediate(about: About) -> str:
    """Of the rotation of the issuer alone."""
    which = "issuer" if about.domain.system is System.LINKERD else "intermediate"
    return _page(
        about,
        f"Rotates the {which} of trust domain **{about.domain.name}** ({_clusters(about.domain)}) under the "
        f"present root: prepare, issue. Nobody's roots change; leaves of the new {which} come with their renewal.",
        f"- **Begins** {_begins(about)}; or press *Run*. One rotation of a domain at a time: a second run is refused.",
        _asks(about, "issue"),
        *_keys(about.domain),
        f"- **Back**: `{about.domain.system.value}-roll-back/{about.domain.name}`.",
    )


def redate(about: About) -> str:
    """Of the new end of a self-signed root."""
    return _page(
        about,
        f"Gives the self-signed root of trust domain **{about.domain.name}** ({_clusters(about.domain)}) a new end: "
        "same key, same name byte for byte, so that old and new verify each other's leaves. It does not cure a key "
        "that somebody else may have.",
        "- **Begins** when a person starts it; it has no schedule.",
        f"- **Asks** once, before it changes the mesh. {_who(about.domain)}",
    )


def enable(about: About) -> str:
    """Of the plug-in CA of an AKS add-on."""
    return _page(
        about,
        f"Gives the Istio add-on of trust domain **{about.domain.name}** ({_clusters(about.domain)}) a CA from Key "
        "Vault: root and intermediate are made, uploaded, and named in the cluster's profile. Refused where the mesh "
        "runs with a self-signed CA: that has to be disabled first.",
        "- **Begins** when a person starts it, who has decided it thereby: nobody is asked again. It has no schedule.",
        *_keys(about.domain),
    )


def expired(about: About) -> str:
    """Of the replacement of what has expired."""
    return _page(
        about,
        f"Replaces what has expired in trust domain **{about.domain.name}** ({_clusters(about.domain)}): its anchor, "
        "its issuers, or leaves that nobody renewed. Downtime is unavoidable, and happens already: everything is "
        "written at once, and whoever is without an identity is started anew. Refused while nothing has expired.",
        "- **Begins** when a person starts it; it has no schedule, and waits for no maintenance window. It takes the "
        "place of a rotation that is stuck because something expired before it ended.",
        f"- **Asks** once, and says what is down since when. {_who(about.domain)}",
        *_keys(about.domain),
        "- **Back**: there is no way back once it has begun; what there was before has expired.",
    )


def webhooks(about: About) -> str:
    """Of the rotation of webhook certificates."""
    return _page(
        about,
        f"Rotates the serving certificates of Linkerd's webhooks in trust domain **{about.domain.name}** "
        f"({_clusters(about.domain)}), viz's tap included where it is installed: caBundle holds old and new until "
        "every replica serves the new one, so that no call of the API server fails. No workload is restarted. "
        "Refused where cert-manager, Argo CD or Flux keep them.",
        "- **Begins** when a person starts it; it has no schedule. One rotation of a domain at a time.",
        _asks(about, _phases(about.domain)),
        *_keys(about.domain),
        f"- **Back**: `{about.domain.system.value}-roll-back/{about.domain.name}`, while the certificates of before "
        "are in the vault and have not ended.",
    )


def roll_back(about: About) -> str:
    """Of the way back."""
    return _page(
        about,
        f"Brings trust domain **{about.domain.name}** ({_clusters(about.domain)}) back to the roots it had before the "
        "rotation under way, through the same gates, without dropping a handshake.",
        "- **Begins** when a person starts it; it has no schedule. A run of the rotation that waits or is suspended is "
        "cancelled; one that is at work has to be cancelled first.",
        f"- **Asks** before it changes the mesh. {_who(about.domain)}",
    )


def radar(about: About) -> str:
    """Of the daily look."""
    return _page(
        about,
        f"Reads trust domain **{about.domain.name}** ({_clusters(about.domain)}) and changes nothing: when roots, "
        "issuer and leaves expire, and whether the mesh is fit to be rotated. Raises the event `capstan.expiry`.",
    )


def sweep(interval: timedelta) -> str:
    """Of the watch over dead runs."""
    return (
        f"Every {int(interval.total_seconds() // 60)} minutes: finds runs of Capstan whose process, worker or server "
        "died and schedules them again under the same run id, within a budget kept in the cluster. Never touches a run "
        "that waits, is suspended or was cancelled.\n"
    )


def _page(about: About, *parts: str) -> str:
    words = [about.words.strip(), ""] if about.words.strip() else []
    first, *points = parts
    return "\n".join([*words, first, "", *points]).strip() + "\n"


def _clusters(domain: TrustDomain) -> str:
    names = ", ".join(f"`{cluster.name}`" for cluster in domain.clusters)
    return f"{_SYSTEMS[domain.system]} in {names}"


def _asks(about: About, phases: str) -> str:
    return (
        f"- **Asks** before {phases}: the run is then *Suspended*; open it and press *Resume*, or "
        f"`capstan approve RUN`. {_who(about.domain)}"
    )


def _keys(domain: TrustDomain) -> tuple[str, ...]:
    kept = f"- **Keys** stay in `{domain.vault or 'the local vault of the worker'}`; a run holds references only."
    if not domain.policy.offline_root:
        return (kept,)
    return (
        kept,
        "- **The root's key is offline**: the run shows a request and is *Suspended* until the chain that "
        "`capstan sign` made of it is handed in.",
    )


def _begins(about: About) -> str:
    if about.start is None:
        return "by hand only: the inventory has no schedule for it"
    when = f"each year in ISO week {about.start.week}" if about.start.week else f"by `{about.start.rule}`"
    return f"{when}, as its maintenance window opens ({about.window}, {about.time_zone})"


def _phases(domain: TrustDomain) -> str:
    phases: list[str] = [phase for phase in ("trust", "issue", "distrust") if phase in domain.policy.approvals]
    return " and ".join(([", ".join(phases[:-1])] if len(phases) > 1 else []) + phases[-1:])


def _who(domain: TrustDomain) -> str:
    people = list(dict.fromkeys(approver.name for approver in domain.policy.approvers))
    if not people:
        return "Whoever can resume the run decides: no approvers are listed."
    return f"Signed by {domain.policy.quorum} of {', '.join(people)}; nothing else counts."
