"""`capstan approve` against a real Prefect server, and a run that asks with the form a rotation asks with."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import capstan.cli
from capstan.approvals import ApproverPolicy, Question, Request
from capstan.approvals.signing import NAMESPACE
from capstan.approvals.tally import Tally, count
from capstan.cluster.record import Approval
from tests.approvals.people import Person, listing, person
from tests.approvals.test_proposals import propose
from tests.support.prefect_server import prefect_server, send_what_is_queued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from capstan.approvals import Decision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480), pytest.mark.xdist_group("approve")]

ADA, EVE = person("ada"), person("eve")
CARD = person("ada", "x509")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server of our own, which this process's Prefect is set to."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home) as environment:
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_LEVEL, temporary_settings

        url = environment["PREFECT_API_URL"]
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_LOGGING_LEVEL: "CRITICAL"}):
            yield url
            send_what_is_queued()


@dataclass
class Asking:
    """A run that is suspended until somebody answers.

    Attributes:
        id: Of the flow run.
        request: What it asks.
        policy: Whose answers count.
    """

    id: UUID
    request: Request
    policy: ApproverPolicy

    @property
    def state(self) -> str:
        """Name of the state the server has the run in."""
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            state = client.read_flow_run(self.id).state
            return state.name or "" if state else ""

    def resumed(self) -> Tally:
        """What the answer comes to, once a worker has taken the run up again."""
        decision = _run_it(self)
        assert decision is not None, "the run asked again"
        given = Approval(
            gate=self.request.gate, decision=decision.choice, by=decision.by, at=decision.at,
            digest=self.request.digest, request=self.request.id, signature=decision.signature,
            ticket=decision.ticket, comment=decision.comment,
        )  # fmt: skip
        question = Question(
            self.request.domain, self.request.rotation, self.request.turn, self.request.gate, self.request.id,
            self.request.digest, datetime.now(UTC) - timedelta(minutes=2),
        )  # fmt: skip
        return count([given], question, self.policy)


def _run_it(asking: Asking) -> Decision | None:
    """Execute the flow run in this process, as a worker's process would: the decision, or None if it is suspended."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    from flows.suspending import ask_by_suspending

    heard: list[Decision] = []

    @flow(name="asks", persist_result=False)
    def asks() -> None:
        heard.append(ask_by_suspending(asking.request))

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(asking.id, Pending(), force=True)
        run = client.read_flow_run(asking.id)
    with suppress(Pause):
        run_flow(asks, flow_run=run)
    return heard[0] if heard else None


@pytest.fixture
def ask(api: str) -> Callable[..., Asking]:
    """Starts a run that asks for the issue phase, and is suspended."""
    from prefect import flow
    from prefect.client.orchestration import get_client

    @flow(name="asks")
    def asks() -> None:
        """The one that is executed is in `_run_it`."""

    def ask(*people: Person, name: str = "prod-eu: rotate trust anchor") -> Asking:
        policy = listing(*people) if people else ApproverPolicy()
        proposal = propose(policy=policy)
        number = f"{datetime.now(UTC):%H%M%S%f}"
        until = datetime.now(UTC) + timedelta(days=7)
        request = Request(
            proposal.domain, proposal.rotation, proposal.gate, proposal.digest, number, until, proposal.text(),
            proposal.markdown(number, until), turn=proposal.turn, approvers=policy.names,
        )  # fmt: skip
        with get_client(sync_client=True) as client:
            deployment = client.create_deployment(client.create_flow(asks), "here")
            run = client.create_flow_run_from_deployment(deployment, name=name, tags=["capstan", "domain:prod-eu"])
        asking = Asking(run.id, request, policy)
        assert _run_it(asking) is None
        assert asking.state == "Suspended"
        return asking

    return ask


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `capstan approve ARGUMENTS` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["capstan", "approve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return run


def pem(directory: Path, someone: Person) -> Path:
    """A key in a PEM file, with its certificate below it."""
    path = directory / f"{someone.name}.pem"
    key = someone.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path.write_text(key + someone.certificate.pem() + "\n")
    return path


def openssh(directory: Path, someone: Person) -> Path:
    """A key as ssh-keygen writes it."""
    path = directory / f"id_{someone.name}"
    path.write_bytes(someone.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


def test_the_runs_that_wait_are_listed_and_shown(ask: Callable[..., Asking], run: Callable[..., Any]) -> None:
    asking = ask(ADA, name="prod-eu: shown")
    code, out, _ = run()
    assert code == 4
    assert f"{str(asking.id)[:8]}   prod-eu   issue     2026-11-21" in out
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run("-o", "json")
    [found] = [entry for entry in json.loads(out) if entry["run"] == str(asking.id)]
    assert (code, found["request"], found["digest"]) == (4, asking.request.id, asking.request.digest)
    code, out, _ = run("prod-eu: shown")
    assert code == 4
    assert "begin phase issue of rotation 2026-11-21?" in out
    assert asking.request.digest in out
    assert "capstan-request" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_an_answer_resumes_the_run_with_what_was_said(ask: Callable[..., Asking], run: Callable[..., Any]) -> None:
    asking = ask()
    said = ("--decision", "approve", "--name", "Zoë", "--ticket", "CHG-1", "--comment", "go")
    code, out, err = run(asking.id, *said, "--yes", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["signed"] is False
    found = asking.resumed()
    assert found.state == "approved"
    assert [(g.by, g.ticket, g.comment) for g in found.counted] == [("Zoë", "CHG-1", "go")]


@pytest.mark.parametrize("decision", ["approve", "reject", "hold"])
def test_an_answer_signed_with_an_openssh_key_counts(
    ask: Callable[..., Asking], run: Callable[..., Any], tmp_path: Path, decision: str
) -> None:
    asking = ask(ADA, EVE)
    key = openssh(tmp_path, ADA)
    code, out, _ = run(str(asking.id)[:8], "--decision", decision, "--name", "ada", "--key", key, "--yes")
    assert code == 0
    assert "the signed answer of ada" in out
    assert asking.resumed().state == {"approve": "approved", "reject": "rejected", "hold": "held"}[decision]


def test_an_answer_signed_with_a_certificates_key_counts(
    ask: Callable[..., Asking], run: Callable[..., Any], tmp_path: Path
) -> None:
    asking = ask(CARD)
    assert run(asking.id, "--decision", "approve", "--key", pem(tmp_path, CARD), "--yes")[0] == 0
    assert asking.resumed().state == "approved"


def test_a_statement_signed_by_hand_with_ssh_keygen_counts(
    ask: Callable[..., Asking], run: Callable[..., Any], tmp_path: Path
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    asking = ask(ADA)
    said = ("--decision", "approve", "--name", "ada", "--ticket", "CHG-1", "--comment", " Zoë says “go”\n")
    code, out, err = run(asking.id, *said, "--print-statement")
    assert code == 0
    assert f"ssh-keygen -Y sign -f KEY -n {NAMESPACE} statement.json" in err
    statement = tmp_path / "statement.json"
    statement.write_text(out)
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", openssh(tmp_path, ADA), "-n", NAMESPACE, statement],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    signature = tmp_path / "statement.json.sig"
    # Sent with another answer than was signed, it is refused here.
    code, _, err = run(asking.id, "--decision", "reject", "--signature", signature, "--yes")
    assert code == 3
    assert "not over this statement" in err
    assert run(asking.id, *said, "--signature", signature, "--yes")[0] == 0
    assert asking.resumed().state == "approved"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 1, "neither --key nor --signature"),
        (("--name", "eve"), 1, "its name is not listed"),
        (("--key", "id_eve"), 3, "a key that is not listed"),
        (("--key", "ada.pem"), 3, "a key that is not listed"),
        (("--key", "none"), 1, "No such file"),
        (("--signature", "id_ada"), 3, "this is no signature"),
    ],
    ids=["unsigned", "unlisted name", "another key", "a certificate that is not listed", "no key", "no signature"],
)
def test_what_could_never_count_is_not_sent(
    ask: Callable[..., Asking],
    run: Callable[..., Any],
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    openssh(tmp_path, ADA), openssh(tmp_path, EVE), pem(tmp_path, CARD)
    asking = ask(ADA)
    files = [str(tmp_path / a) if "--" not in a and arguments[0] != "--name" else a for a in arguments]
    found, _, err = run(asking.id, "--decision", "approve", *files, "--yes")
    assert (found, asking.state) == (code, "Suspended")
    assert says in err


def test_an_answer_that_the_server_refuses_is_an_error_with_its_reason(
    ask: Callable[..., Asking], run: Callable[..., Any]
) -> None:
    asking = ask()
    code, _, err = run(asking.id, "--decision", "approve", "--name", "zoe", "--comment", "x" * 2001, "--yes")
    assert (code, asking.state) == (1, "Suspended")
    assert "the server refused the answer; nothing was decided" in err
    assert "is too long" in err


def test_a_run_that_was_answered_before_is_not_answered_again(
    ask: Callable[..., Asking], run: Callable[..., Any]
) -> None:
    asking = ask()
    assert run(asking.id, "--decision", "hold", "--name", "zoe", "--yes")[0] == 0
    code, _, err = run(asking.id, "--decision", "approve", "--name", "zoe", "--yes")
    assert code == 1
    assert "this run does not wait for an approval" in err
    assert "state Resuming" in err
    assert asking.resumed().state == "held"


def test_a_run_that_is_not_there_or_not_the_only_one_is_not_guessed(
    ask: Callable[..., Asking], run: Callable[..., Any]
) -> None:
    twins = ask(name="twins"), ask(name="twins")
    code, _, err = run("twins", "--decision", "approve", "--yes")
    assert code == 1
    assert all(str(each.id)[:8] in err for each in twins)
    for wanted in ("nobody", "00000000-0000-4000-8000-000000000000"):
        code, _, err = run(wanted, "--decision", "approve", "--yes")
        assert code == 1
        assert "no such run waits for an approval" in err


def test_without_a_terminal_nothing_is_sent_unless_told_to(ask: Callable[..., Asking], run: Callable[..., Any]) -> None:
    asking = ask()
    code, _, err = run(asking.id, "--decision", "approve", "--name", "zoe")
    assert (code, asking.state) == (1, "Suspended")
    assert "add --yes" in err


def test_the_documented_lines_of_curl_answer_a_run(ask: Callable[..., Asking], api: str, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("bash", "curl", "jq"))):
        pytest.skip("bash, curl or jq is not installed")
    text = (Path(__file__).parents[2] / "docs" / "approvals.md").read_text()
    script = text[text.index("```bash\n") + len("```bash\n") :]
    # The fence's own marks stand inside the script, in a pattern of sed.
    script = script[: script.index("\n```\n")]
    asking = ask()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PREFECT_API_URL": api, "RUN": str(asking.id)},
    )  # fmt: skip
    assert done.stdout == "ACCEPT\n"
    found = asking.resumed()
    assert [(given.by, given.ticket) for given in found.counted] == [("Ada Example", "CHG-1042")]


@pytest.mark.parametrize(("last", "code", "state"), [("n", 4, "Suspended"), ("y", 0, "Resuming")])
def test_on_a_terminal_what_was_not_given_is_asked_for_and_the_last_word_is_the_persons(
    ask: Callable[..., Asking],
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: str,
    code: int,
    state: str,
) -> None:
    asking = ask(ADA, EVE)
    ours, theirs = pty.openpty()
    typed = ("maybe", "approve", "ada", "CHG-1", "go", openssh(tmp_path, ADA), last)
    os.write(ours, "".join(f"{line}\n" for line in typed).encode())
    shown: list[bytes] = []
    screen = threading.Thread(target=_read_all, args=(ours, shown), daemon=True)
    screen.start()
    with os.fdopen(theirs, "r") as stdin, os.fdopen(os.dup(theirs), "w") as stderr:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        found, _, _ = run(asking.id)
    screen.join()
    os.close(ours)
    assert "begin phase issue of rotation 2026-11-21?" in b"".join(shown).decode()
    assert (found, asking.state) == (code, state)
    if code == 0:
        [given] = asking.resumed().counted
        assert (given.by, given.ticket, given.comment) == ("ada", "CHG-1", "go")


def _read_all(terminal: int, into: list[bytes]) -> None:
    """Read a terminal until its other end is closed, which Linux tells with EIO."""
    with suppress(OSError):
        while chunk := os.read(terminal, 4096):
            into.append(chunk)


def test_the_same_answer_may_be_sent_over_the_rest_api(ask: Callable[..., Asking], api: str) -> None:
    asking = ask(ADA)
    given = ADA.answer(question=Question(
        asking.request.domain, asking.request.rotation, 1, "issue", asking.request.id, asking.request.digest,
        datetime.now(UTC),
    ))  # fmt: skip
    form = {"decision": "approve", "name": "ada", "request": asking.request.id, "signature": given.signature}
    resume = f"{api}/flow_runs/{asking.id}/resume"
    for wrong in ({"request": "another"}, {"name": "eve"}, {"signature": ""}, {"decision": "yes"}, {"more": "x"}):
        answer = httpx.post(resume, json={"run_input": {**form, **wrong}}, timeout=30)
        assert (answer.status_code, answer.json()["status"]) == (200, "REJECT")
    assert httpx.post(resume, json={"run_input": form}, timeout=30).json()["status"] == "ACCEPT"
    assert asking.resumed().state == "approved"
