"""Whose answers count: the approvers of a trust domain, from a file on the worker where there is one.

Whoever launches a run chooses its parameters, and with them `policy.approvers`. So a worker may have a file of its own
(`$CAPSTAN_APPROVERS`): where it is set, it alone says who approves what, and a domain that is not in it cannot be
rotated by that worker.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from capstan.approvals.keys import ListedKey, listed
from capstan.config import ApproverKey, ClusterRef  # noqa: TC001  # pydantic reads the annotations at run time
from capstan.errors import Denied, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capstan.config import TrustDomain

VARIABLE: Final = "CAPSTAN_APPROVERS"
ALL_GATES: Final[frozenset[Literal["trust", "issue", "distrust"]]] = frozenset({"trust", "issue", "distrust"})


@dataclass(frozen=True, slots=True)
class ApproverPolicy:
    """Whose answers count.

    Attributes:
        keys: Every key that counts; none means that whoever can resume the run decides.
        quorum: How many different people must approve.
        gates: Phases before which somebody is asked; a roll-back is asked for always.
        source: Where this was declared, for messages.
    """

    keys: tuple[ListedKey, ...] = ()
    quorum: int = 1
    gates: frozenset[str] = ALL_GATES
    source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The people, each once, in the order of the list."""
        return tuple(dict.fromkeys(key.name for key in self.keys))

    @property
    def key_ids(self) -> tuple[tuple[str, str], ...]:
        """The keys that count, as (name, fingerprint)."""
        return tuple((key.name, key.id) for key in self.keys)

    def keys_of(self, name: str) -> tuple[ListedKey, ...]:
        """The keys of one person; none if the person is not listed."""
        return tuple(key for key in self.keys if key.name == name)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: tuple[ApproverKey, ...] = ()
    quorum: int = Field(default=1, ge=1)
    approvals: frozenset[Literal["trust", "issue", "distrust"]] = Field(default=ALL_GATES, min_length=1)
    clusters: tuple[ClusterRef, ...] | None = None


def approver_policy(domain: TrustDomain, environ: Mapping[str, str] = os.environ) -> ApproverPolicy:
    """Whose answers count for a trust domain.

    Args:
        environ: Read for `CAPSTAN_APPROVERS`, a YAML file: domain -> `approvers`, `quorum` and `approvals` as in the
            policy, and `clusters` as in the domain, which then must be the same. A file of several domains must say
            which clusters are whose: else a launch could rotate one domain's clusters under another one's name.

    Raises:
        InvalidInput: A key cannot be used, two people share one, the quorum cannot be reached, or the file is no such
            file; names the field.
        Denied: The file does not list this domain, or lists other clusters for it.
    """
    path = environ.get(VARIABLE, "")
    if not path:
        source = f"policy of trust domain {domain.name}"
        return compiled(domain.policy.approvers, domain.policy.quorum, source, domain.policy.approvals)
    entries = _read(Path(path))
    if domain.name not in entries:
        raise Denied(
            "this worker may not rotate this trust domain: its file of approvers does not list it",
            where=path, observed=f"trust domains {', '.join(sorted(entries)) or '(none)'}", expected=domain.name,
            next_command=f"add {domain.name} to {path} (${VARIABLE}), with `approvers` and `quorum`",
        )  # fmt: skip
    entry = _entry(entries[domain.name], domain.name, path)
    _require_its_clusters(entry, domain, path, alone=len(entries) == 1)
    return compiled(entry.approvers, entry.quorum, f"{path}, trust domain {domain.name}", entry.approvals)


def _require_its_clusters(entry: _Entry, domain: TrustDomain, path: str, *, alone: bool) -> None:
    if entry.clusters is None and not alone:
        raise InvalidInput(
            "the file of approvers does not say which clusters are whose",
            where=f"{path}, field {domain.name}.clusters", observed="none, in a file of several trust domains",
            expected="the domain's clusters, as in its inventory", next_command=f"edit {path}",
        )  # fmt: skip
    if entry.clusters is not None and set(entry.clusters) != set(domain.clusters):
        raise Denied(
            "this worker may not rotate these clusters under this name", where=f"{path}, field {domain.name}.clusters",
            observed="; ".join(_told(cluster) for cluster in domain.clusters),
            expected="; ".join(_told(cluster) for cluster in entry.clusters),
            next_command="launch the deployment of that trust domain, or correct the file",
        )  # fmt: skip


def _told(cluster: ClusterRef) -> str:
    return f"{cluster.name} (kubeconfig {cluster.kubeconfig or 'default'}, context {cluster.context or 'default'})"


def compiled(
    approvers: Sequence[ApproverKey], quorum: int, source: str, gates: frozenset[str] = ALL_GATES
) -> ApproverPolicy:
    """Parse the keys and check that the list makes sense.

    Raises:
        InvalidInput: As `approver_policy`.
    """
    keys = []
    for number, approver in enumerate(approvers):
        try:
            keys.append(listed(approver))
        except InvalidInput as error:
            raise InvalidInput(
                error.what, where=f"{source}, field approvers[{number}].key ({approver.name})", observed=error.observed,
                expected=error.expected, next_command=error.next_command,
            ) from error  # fmt: skip
    policy = ApproverPolicy(tuple(keys), quorum, frozenset(gates), source)
    _require_distinct(policy)
    if quorum > max(1, len(policy.names)):
        raise InvalidInput(
            "the quorum can never be reached", where=f"{source}, field quorum", observed=str(quorum),
            expected=f"at most the {len(policy.names)} different people listed"
            if keys else "1 where no approvers are listed",
            next_command="list more approvers, or lower the quorum",
        )  # fmt: skip
    return policy


def _require_distinct(policy: ApproverPolicy) -> None:
    spelled: dict[str, str] = {}
    for name in policy.names:
        # "Ada" and "ada " would be two people to a machine and one to whoever reads the list.
        other = spelled.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other != name:
            raise InvalidInput(
                "two approvers' names differ only in how they are written", where=f"{policy.source}, field approvers",
                observed=f"{other!r} and {name!r}", expected="one spelling for one person",
            )  # fmt: skip
    owner: dict[str, str] = {}
    for key in policy.keys:
        if owner.setdefault(key.spki, key.name) != key.name:
            raise InvalidInput(
                "two approvers have the same key", where=f"{policy.source}, field approvers",
                observed=f"{key.id} of {owner[key.spki]!r} and of {key.name!r}", expected="a key belongs to one person",
            )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(path, str(error), "a readable file") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _bad_file(path, f"{line}{error.problem or error.context}", "YAML") from error
    except YAMLError as error:
        raise _bad_file(path, str(error), "YAML") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _bad_file(path, f"a {type(found).__name__}", "a mapping from trust domain to approvers and quorum")
    return dict(found)


def _entry(value: object, domain: str, path: str) -> _Entry:
    try:
        return _Entry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise InvalidInput(
            "the file of approvers cannot be used", where=f"{path}, field {domain}{field}", observed=first["msg"],
            expected="`approvers` (a list of `name` and `key`), `quorum`, `approvals`, `clusters`",
            next_command=f"edit {path}",
        ) from error  # fmt: skip


def _bad_file(path: Path, observed: str, expected: str) -> InvalidInput:
    return InvalidInput(
        "the file of approvers cannot be read", where=f"{path} (${VARIABLE})", observed=observed, expected=expected,
        next_command=f"set {VARIABLE} to a file that can be read, or unset it",
    )  # fmt: skip
