"""New issuers: minted under a root in the vault, or signed by a root that is kept offline.

With the policy `offline_root` the flow makes the issuers' keys, shows the signing requests, and waits for a person to
bring the signed chain back: in a deployment suspended, with a form for it; anywhere else for a file. The root's private
key is on a machine that neither the cluster, the vault nor Prefect can see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from prefect.client.orchestration import get_client
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from capstan.config import TrustDomain
from capstan.errors import ApprovalRequired, InvalidInput, VerificationFailed
from capstan.progress import watcher
from capstan.rotation import Rotation
from capstan.rotation.offline import LARGEST, Asked, chain_path
from flows import durable
from flows.artifacts import key
from flows.durable import deployed
from flows.publishing import Sender, publisher
from flows.suspending import answered_or_suspend
from tasks import steps

GATE: Final = "signed-chain"
_POLL: Final = 1.0


class Signed(BaseModel):
    """What whoever signed fills in."""

    model_config = ConfigDict(extra="forbid", title="Signed chain")

    chain: str = Field(
        min_length=1, max_length=LARGEST, title="Signed chain (PEM)",
        description="Each issuer, what stands between it and its root, and the root's certificate. Never a key.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """A signed chain that is waited for.

    Attributes:
        id: Of the rotation.
        turn: Of the rotation.
        command: What runs this again.
        asked: The requests to be answered.
        until: When nobody waits any more, aware UTC.
        accept: Takes the text and where it came from; raises InvalidInput or VerificationFailed if it is of no use.
    """

    domain: TrustDomain
    id: str
    turn: int
    command: str
    asked: Sequence[Asked]
    until: datetime
    accept: Callable[[str, str], None]
    now: Callable[[], datetime]
    sleep: Callable[[float], None]


def mint_or_have_signed(rotation: Rotation) -> None:
    """Return when the rotation has its new issuers, and its new root.

    Raises:
        VerificationFailed, InvalidInput: What was brought back cannot be used (in a deployment it is asked for again).
        ApprovalRequired: Nobody brought a signed chain in time.
        Pause: The run is suspended until somebody brings it.
    """
    if not rotation.domain.policy.offline_root:
        steps.mint(rotation)
        return
    if steps.recall_signed(rotation):
        return
    asked = steps.request_signing(rotation)
    until = rotation.keep_until(GATE, rotation.domain.policy.approval_timeout)
    have_signed(
        Wanted(
            rotation.domain, rotation.id, rotation.turn, rotation.command, asked, until,
            lambda text, where: steps.accept_signed(rotation, asked, text, where), rotation.now, rotation.sleep,
        )
    )  # fmt: skip
    rotation.drop_deadlines(GATE)


def have_signed(wanted: Wanted) -> None:
    """Return when a signed chain was brought and accepted.

    Raises:
        As `mint_or_have_signed`.
    """
    publish_requests(wanted)
    if deployed():
        _by_form(wanted)
    else:
        _by_file(wanted)


def request_page(rotation: str, asked: Sequence[Asked]) -> str:
    """The requests as markdown, with how to sign them."""
    lines = [
        f"Rotation {rotation} needs {len(asked)} signature(s) of the root that is kept offline. Carry each request to "
        "its machine, compare the SHA-256, sign, and bring the chain back.",
    ]
    for each in asked:
        lines += [
            "",
            f"### Cluster {each.cluster}",
            "",
            f"`{each.request.subject}`, {each.request.key_algorithm}, SHA-256 `{each.request.fingerprint}`",
            "",
            f"    capstan sign --request {each.path.name} --root-cert ROOT.pem --root-key ROOT.key --out chain.pem",
            "",
            "```",
            each.request.pem().strip(),
            "```",
        ]
    return "\n".join(lines)


def publish_requests(wanted: Wanted) -> None:
    """Show the requests among the run's artifacts; never raises."""
    to = publisher()
    if to is None:
        return
    page, name, number = request_page(wanted.id, wanted.asked), key(wanted.domain.name, GATE), len(wanted.asked)

    def send(sender: Sender) -> None:
        sender.artifact(name, "markdown", page, f"**{number} signature(s)** wanted for rotation {wanted.id}")

    to.put(GATE, send)


def _by_form(wanted: Wanted) -> None:
    """Ask until a chain is brought that verifies; each answer that does not is told in the next form."""
    run, problem, number = durable.flow_run_id(), "", 0
    with get_client(sync_client=True) as client:
        while True:
            told = _told(wanted, problem)
            answer = answered_or_suspend(
                client, run,
                key=f"{GATE}-{wanted.id}-{wanted.turn}-{number}",
                until=wanted.until,
                message=f"waits for {len(wanted.asked)} signature(s) of the offline root",
                form=form(told),
                description=told,
            )  # fmt: skip
            number += 1
            if answer is None:
                continue
            try:
                wanted.accept(chain_of(answer), "the form's signed chain")
            except (InvalidInput, VerificationFailed) as error:
                problem = str(error)
                watcher().note(problem)
            else:
                return


def form(told: str) -> type[Signed]:
    """The form with what is wanted in its field's description, where Prefect's dialog lets it be scrolled."""
    shown = told.replace("\n", "\r")  # as `flows.suspending` says
    field: Any = (
        Annotated[str, Field(title="Signed chain (PEM)", min_length=1, max_length=LARGEST, description=shown)],
        ...,
    )
    return create_model("SignedChain", __base__=Signed, chain=field)


def _told(wanted: Wanted, problem: str) -> str:
    refused = f"**The last answer could not be used:**\n\n```\n{problem}\n```\n\n" if problem else ""
    return refused + request_page(wanted.id, wanted.asked)


def chain_of(answer: Any) -> str:
    """The chain, checked again: the server checked it against the form; whoever writes to its database does not.

    Raises:
        InvalidInput: It does not fit the form.
    """
    try:
        return Signed.model_validate(answer).chain
    except ValidationError as error:
        raise InvalidInput(
            "an answer does not fit its form", where="the form's signed chain", observed=error.errors()[0]["msg"],
            expected="the signed chain as PEM",
        ) from None  # fmt: skip


def _by_file(wanted: Wanted) -> None:
    """Wait for the file, and until it has stopped growing."""
    path = chain_path(wanted.domain, wanted.id)
    watcher().note(f"bring the signed chain to {path} (until {wanted.until:%Y-%m-%d %H:%M} UTC)")
    for each in wanted.asked:
        watcher().note(f"capstan sign --request {each.path} --root-cert ROOT.pem --root-key ROOT.key --out {path}")
        for line in each.request.pem().splitlines():
            watcher().note(line)
    watcher().count(0, len(wanted.asked), [f"signature for cluster {each.cluster}" for each in wanted.asked])
    before: int | None = None
    while (size := _size(path)) is None or size == 0 or size != before:
        if wanted.now() >= wanted.until:
            raise ApprovalRequired(
                "nobody brought the signed chain in time", where=str(path),
                observed=f"no such file by {wanted.until:%F %T}Z", expected="the chain signed by the offline root",
                next_command=f"sign {', '.join(str(each.path) for each in wanted.asked)} with `capstan sign`, "
                f"then go on: {wanted.command} --signed-chain FILE",
            )  # fmt: skip
        before = size
        wanted.sleep(_POLL)
    wanted.accept(_text(path), str(path))
    watcher().count(len(wanted.asked), len(wanted.asked))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[: LARGEST + 1].decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "the signed chain is no text", where=str(path), observed="bytes that are not ASCII",
            expected="PEM certificates", next_command="openssl x509 -inform der -in FILE",
        ) from error  # fmt: skip
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(
        "the signed chain cannot be read", where=str(path), observed=error.strerror or type(error).__name__,
        expected="a file with PEM certificates", next_command=f"ls -l {path}",
    )  # fmt: skip
