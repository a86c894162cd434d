"""`capstan istio`: what root-transition.sh did, with thresholds, exit codes and every proxy's own word.

Exit codes of the checks: 0 all is well, 1 an error, 2 a warning (a rotation is due).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.text import Text

from capstan.cli.approving import ApprovalOptions
from capstan.cli.istio_enable import enable
from capstan.cli.istio_judging import Age, Grade, Held, ages, held, versions, worst
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table, stdout
from capstan.config import System, require_rotation_id
from capstan.errors import Denied, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.systems.opening import open_systems

if TYPE_CHECKING:
    from capstan.config import TrustDomain
    from capstan.systems.istio.adapter import Istio

app = App(
    name="istio",
    help="Look at an Istio's CA and who holds it; give a self-signed root a new end; enable the AKS add-on.",
    help_epilogue="Exit codes of the checks: 0 well, 1 an error, 2 a warning: a rotation is due",
)
app.command(enable)

_SYSTEMS = (System.ISTIO, System.AKS_ISTIO)
_STYLES = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.ERROR: "bold red"}
_SHOWN = 40


@app.command
def check_root(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    days_warning: int = 60,
    days_error: int = 30,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Say how long the roots and the signing CA last; exit 1 below --days-error, 2 below --days-warning.

    Parameters
    ----------
    days_warning
        From so many days left on, a certificate is a warning.
    days_error
        From so many days left on, it is an error.
    output
        table, json or yaml.
    """
    if days_error > days_warning or days_error < 0:
        raise InvalidInput(
            "these thresholds make no sense", observed=f"error at {days_error} days, warning at {days_warning}",
            expected="0 <= --days-error <= --days-warning", next_command="capstan istio check-root --help",
        )  # fmt: skip
    now = datetime.now(UTC)
    found: list[Age] = []
    with _opened(options) as (_, systems):
        for istio in systems:
            roots, issuer = _ca(istio)
            found += ages(istio.cluster_name, roots, issuer, now, days_warning, days_error)
    grade = worst(age.grade for age in found)
    if output in (Output.JSON, Output.YAML):
        print_data(
            {"schemaVersion": 1, "grade": grade.name.lower(), "certificates": [a.as_json() for a in found]}, output
        )
    else:
        print_table(
            ("days left", "role", "subject", "until", "SHA-256", "cluster"),
            [
                (
                    Text(str(age.days), style=_STYLES[age.grade]), age.role, age.certificate.subject,
                    f"{age.certificate.not_after:%Y-%m-%d}", age.certificate.fingerprint[:16], age.cluster,
                )
                for age in found
            ],
        )  # fmt: skip
        if grade is not Grade.OK:
            stdout().print("\na self-signed root: capstan istio transition; any: capstan rotate")
    return int(grade)


@app.command
def check_version(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen, too
    *,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Say which versions run, and which of them a rotation cannot do without a restart, or at all; exit 1 or 2.

    Parameters
    ----------
    output
        table, json or yaml.
    """
    with _opened(options) as (_, systems):
        found = [running for istio in systems for running in versions(istio.cluster_name, istio.view())]
    grade = worst(running.grade for running in found)
    if output in (Output.JSON, Output.YAML):
        print_data({"schemaVersion": 1, "grade": grade.name.lower(), "running": [r.as_json() for r in found]}, output)
        return int(grade)
    print_table(
        ("version", "what", "namespace", "revision", "count", "remark"),
        [
            (
                Text(running.version, style=_STYLES[running.grade]), running.what, running.namespace,
                running.revision or "-", str(running.count), running.remark or "-",
            )
            for running in found
        ],
    )  # fmt: skip
    return int(grade)


@app.command
def verify_certs(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen, too
    *,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Ask every place, istiod and proxy what it holds, and compare it with the CA; exit 1 if one differs or is silent.

    Parameters
    ----------
    output
        table (only what differs), json or yaml.
    """
    found: list[Held] = []
    with _opened(options) as (_, systems):
        for istio in systems:
            view = istio.view()
            found += held(view.observation, datetime.now(UTC), view.troubles)
    grade = worst(one.grade for one in found)
    counts = {what: _count(found, what) for what in ("place", "istiod", "proxy")}
    if output in (Output.JSON, Output.YAML):
        data: dict[str, Any] = {
            "schemaVersion": 1,
            "match": grade is Grade.OK,
            "counts": {what: {"match": good, "total": total} for what, (good, total) in counts.items()},
            "problems": [one.as_json() for one in found if one.problem],
        }
        print_data(data, output)
        return int(grade)
    print_table(("what", "match"), [(what, f"{good} of {total}") for what, (good, total) in counts.items()])
    problems = [one for one in found if one.problem]
    if problems:
        stdout().print()
        print_table(
            ("what", "name", "problem", "cluster"),
            [(one.what, one.name, one.problem, one.cluster) for one in problems[:_SHOWN]],
        )
        if len(problems) > _SHOWN:
            stdout().print(f"and {len(problems) - _SHOWN} more (-o json shows all)")
    return int(grade)


@app.command
def transition(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen, too
    *,
    rotation: str | None = None,
    approvals: ApprovalOptions = ApprovalOptions(),  # noqa: B008  # frozen, too
    take_over: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Give a self-signed root a new end: same key, same name, byte for byte. Killed and run again, it goes on.

    A key that may be known to somebody is not cured by this: `capstan rotate` replaces it.

    Parameters
    ----------
    rotation
        Id; an unfinished one is gone on with, a new one is named after today (UTC) by default.
    take_over
        Go on with what a run of a Prefect deployment has claimed: only if that run is never to go on.
    output
        How the outcome is printed: table, json or yaml.
    """
    from capstan.cli.entry_points import What, phases_of, redate_flow
    from capstan.cli.rotate import print_outcome, run_flow

    if rotation is not None:
        require_rotation_id(rotation)
    domain = options.resolve((System.ISTIO,))
    outcome = run_flow(
        domain, redate_flow, (rotation, take_over), approvals=approvals,
        title=f"a new end for the self-signed root of trust domain {domain.name}",
        phases=phases_of(What.RE_DATE),
    )  # fmt: skip
    print_outcome(outcome, output)
    return Exit.OK if outcome.completed else Exit.FAILURE


@contextmanager
def _opened(options: DomainOptions) -> Iterator[tuple[TrustDomain, Sequence[Istio]]]:
    from capstan.systems.istio.adapter import Istio

    domain = options.resolve(_SYSTEMS)
    clusters, systems = open_systems(domain)
    try:
        yield domain, [system for system in systems.values() if isinstance(system, Istio)]
    finally:
        for cluster in clusters.values():
            cluster.close()


def _ca(istio: Istio) -> tuple[Bundle, Any]:
    """The roots and the signing CA; where the source may not be read, the roots as they are handed out."""
    from capstan.cluster.resources import CONFIG_MAPS
    from capstan.systems.istio.layout import CONFIG_MAP, ROOT_CERT_KEY

    try:
        source = istio.source()
        files = source.read()
    except Denied:
        where = f"configmap {istio.namespace}/{CONFIG_MAP} of cluster {istio.cluster_name}"
        text = istio.cluster.get(CONFIG_MAPS, CONFIG_MAP, istio.namespace).get("data", {}).get(ROOT_CERT_KEY, "")
        return Bundle.parse_lenient(text, where), None
    issuer = Bundle.parse_lenient(files.ca_cert, source.where).certificates[0]
    return Bundle.parse_lenient(files.root_cert, source.where), issuer


def _count(found: Sequence[Held], what: str) -> tuple[int, int]:
    those = [one for one in found if one.what == what]
    return sum(not one.problem for one in those), len(those)
