"""`capstan check --rbac`: which rights are missing, for reading and for rotating, before anything starts."""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from capstan.cli.output import Exit, Output, print_data, print_table, stdout
from capstan.cluster.access import grant
from capstan.cluster.record import NAMESPACE
from capstan.systems.opening import connect
from capstan.systems.rights import Purpose, Rights, needed, rights_in, shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.config import TrustDomain

NAME = "capstan-missing"
_AIMS: Final = {
    Purpose.READ: "read",
    Purpose.ROTATE: "rotate",
    Purpose.WEBHOOKS: "rotate the webhooks' certificates",
    Purpose.OPTIONAL: "do what is optional",
}


class For(StrEnum):
    """What the caller is to be able to do."""

    READ = "read"
    ROTATE = "rotate"
    WEBHOOKS = "webhooks"

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """Whose missing rights fail the command."""
        return {
            For.READ: (Purpose.READ,),
            For.ROTATE: (Purpose.READ, Purpose.ROTATE),
            For.WEBHOOKS: (Purpose.READ, Purpose.ROTATE, Purpose.WEBHOOKS),
        }[self]


def check_rights(domain: TrustDomain, wanted: For, output: Output) -> int:
    """Ask every cluster of the domain, and print what came out.

    Raises:
        Denied: Even asking is not permitted. Others: as any read.
    """
    needs = needed(domain.system, domain.control_plane_namespace, domain.name)
    found = []
    for reference in domain.clusters:
        cluster = connect(reference)
        try:
            found.append(rights_in(cluster, needs))
        finally:
            cluster.close()
    failed = any(rights.missing(*wanted.purposes) for rights in found)
    if output in (Output.JSON, Output.YAML):
        print_data(_as_data(found, wanted, failed), output)
    else:
        for rights in found:
            _print(rights, wanted, domain, short=output is Output.SHORT, named=len(found) > 1)
        stdout().print(Text("Status check results are " + ("×" if failed else "√"), style="bold"))
    return Exit.FAILURE if failed else Exit.OK


def _as_data(found: Sequence[Rights], wanted: For, failed: bool) -> dict[str, Any]:
    return {
        "schemaVersion": 1,
        "success": not failed,
        "for": wanted.value,
        "clusters": [
            {
                "name": rights.cluster,
                "user": rights.user,
                "rights": [
                    {
                        "verb": verdict.need.right.verb,
                        "group": verdict.need.right.group,
                        "resource": verdict.need.right.resource,
                        "namespace": verdict.need.right.namespace,
                        "name": verdict.need.right.name,
                        "for": verdict.need.purpose.value,
                        "why": verdict.need.why,
                        "allowed": verdict.allowed,
                        "reason": verdict.reason,
                    }
                    for verdict in rights.verdicts
                ],
                "grant": _granting(rights, wanted),
            }
            for rights in found
        ],
    }


def _granting(rights: Rights, wanted: For) -> list[dict[str, Any]]:
    missing = [need.right for need in rights.missing(*wanted.purposes)]
    if not missing or not rights.user:
        return []
    # Without a namespace no role can be put into it; applying one that is there changes nothing of it.
    own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    return [*([own] if any(r.namespace == NAMESPACE for r in missing) else []), *grant(missing, rights.user, NAME)]


def _print(rights: Rights, wanted: For, domain: TrustDomain, *, short: bool, named: bool) -> None:
    console = stdout()
    title = f"rights of {rights.user or 'whoever the kubeconfig names'}" + (f" ({rights.cluster})" if named else "")
    console.print(Text(f"{title}\n{'-' * len(title)}", style="bold"))
    for purpose in Purpose:
        rows = _rows(rights, purpose, short=short)
        if rows and purpose in (*wanted.purposes, Purpose.OPTIONAL):
            print_table((purpose.value, "verbs", "resource", "namespace"), rows)
            console.print()
    for purpose in wanted.purposes:
        console.print(_sum(rights, purpose))
    console.print()
    objects = _granting(rights, wanted)
    if not objects:
        return
    ours = shipped(domain.system, "webhooks" if wanted is For.WEBHOOKS else "anchor")
    console.print(
        Text(
            f"To grant what is missing to {rights.user}, as an administrator of the cluster:\n"
            "    kubectl apply -f FILE      with the following in FILE\n"
            f"or give it the roles of infra/kubernetes ({ours}).",
        )
    )
    sys.stdout.write(_yaml(objects))


def _sum(rights: Rights, purpose: Purpose) -> Text:
    missing, aim = rights.missing(purpose), _AIMS[purpose]
    if not missing:
        return Text(f"√ nothing is missing to {aim}", style="green")
    return Text(f"× {len(missing)} missing to {aim}", style="bold red")


def _rows(rights: Rights, purpose: Purpose, *, short: bool) -> list[tuple[Text, str, Text, str]]:
    """One line for each object and answer: its verbs together; what is missing says what for."""
    grouped: dict[tuple[str, str, str, bool, str], list[str]] = {}
    for verdict in rights.verdicts:
        need, right = verdict.need, verdict.need.right
        if need.purpose is purpose:
            key = (right.resource, right.name, right.namespace, verdict.allowed, need.why)
            grouped.setdefault(key, []).append(right.verb)
    optional = purpose is Purpose.OPTIONAL
    rows = []
    for (resource, name, namespace, allowed, why), verbs in grouped.items():
        # What is optional and missing changes nothing: told in full, but not as a fault.
        if short and (allowed or optional):
            continue
        mark = Text("√", style="green") if allowed else Text("-") if optional else Text("×", style="bold red")
        what = Text(f"{resource} {name}".rstrip())
        if not allowed:
            what.append(f"\nto {why}", style="dim")
        rows.append((mark, ", ".join(verbs), what, namespace or "(all)"))
    return rows


def _yaml(objects: Sequence[dict[str, Any]]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.explicit_start = True
    buffer = io.StringIO()
    yaml.dump_all(objects, buffer)
    return buffer.getvalue()
