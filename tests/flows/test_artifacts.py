"""The tables and the picture that people see of a rotation, made from its plan and its account."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from capstan.errors import InvalidInput
from capstan.evidence import Entry, Evidence
from capstan.evidence.signer import Signer, mint_signing_key
from capstan.trust.plan import plan
from flows.artifacts import MAX_ROWS, _where, evidence_rows, plan_rows, timeline_page
from flows.handshakes import Handshakes, counted, read
from tests.trust import domains

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from capstan.rotation import Rotation

NOW = datetime(2026, 11, 22, 2, 9, tzinfo=UTC)


def test_a_plan_is_a_table_of_its_steps_with_what_is_done_and_where() -> None:
    half = domains.domain(
        domains.settled(domains.BOTH, domains.OLD, name="east"),
        domains.settled(domains.only(domains.OLD), domains.OLD, name="west"),
    )
    table = plan_rows(plan(half, domains.only(domains.OLD), domains.NEW))
    states = {row["step"]: row["state"] for row in table}
    assert states["prepare: mint"] == "✓ done"
    assert states["trust: widen-bundle"] == "pending in west"
    assert states["distrust: narrow-bundle"] == "pending"
    assert all(row["changes"] and row["way back"] for row in table)


def test_the_refusal_of_the_old_roots_is_done_once_it_was_proven() -> None:
    over = domains.domain(domains.settled(domains.only(domains.NEW), domains.NEW, name="east"))
    planned = plan(over, domains.only(domains.OLD), domains.NEW)
    assert [row["state"] for row in plan_rows(planned)][-1] == "pending"
    assert {row["state"] for row in plan_rows(planned, refused=True)} == {"✓ done"}


def test_an_account_is_a_table_of_its_last_entries() -> None:
    entries = [
        Entry(n, NOW, "r", "probe", {"cluster": "eu-1", "old": ["ab" * 32]}, "", "") for n in range(1, MAX_ROWS + 3)
    ]
    counters = [Entry(0, NOW, "r", kind, {"attempted": 1}, "", "") for kind in ("look", "handshakes")]
    table = evidence_rows([*entries, *counters])
    assert len(table) == MAX_ROWS
    assert table[-1] == {
        "#": MAX_ROWS + 2,
        "time": "2026-11-22T02:09:00Z",
        "what": "probe",
        "facts": "cluster=eu-1, old=abababababab",
    }
    json.dumps(table)


def entered(*phases: tuple[str, str]) -> list[Entry]:
    return [
        Entry(n, NOW, "r", "phase-entered", {"phase": phase, "direction": direction}, "", "")
        for n, (phase, direction) in enumerate(phases, 1)
    ]


def test_a_run_that_goes_on_is_named_after_the_furthest_phase_while_it_passes_the_earlier_ones() -> None:
    entries = entered(("prepare", "forward"), ("trust", "forward"), ("issue", "forward"))
    assert _where(entries, "", back=False) == "issue"
    assert _where(entries, "prepare", back=False) == "issue"
    assert _where(entries, "distrust", back=False) == "distrust"


def test_a_run_on_its_way_back_says_so() -> None:
    entries = entered(("trust", "forward"), ("issue", "forward"))
    assert _where(entries, "issue", back=True) == "issue back"
    assert _where([*entries, *entered(("issue", "back"))], "", back=True) == "issue back"


def test_a_run_that_has_entered_no_phase_keeps_its_name() -> None:
    assert _where([Entry(1, NOW, "r", "rotation-begun", {}, "", "")], "", back=False) == ""


def test_the_timeline_is_a_picture_inside_the_page() -> None:
    page = timeline_page([Entry(1, NOW, "r", "rotation-begun", {"domain": "prod-eu"}, "", "")])
    before, _, after = page.partition("base64,")
    assert before == "![timeline](data:image/svg+xml;"
    assert base64.b64decode(after.removesuffix(")")).startswith(b"<svg ")


@contextmanager
def endpoint(answer: bytes, status: int = 200) -> Iterator[str]:
    """An HTTP server on loopback with one answer."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/prober"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_handshakes_are_read_from_an_endpoint_that_may_say_more() -> None:
    with endpoint(b'{"attempted": 12, "failed": 1, "since": "2026-11-22"}') as url:
        assert read(url) == Handshakes(attempted=12, failed=1)


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"attempted": 1}', b'{"attempted": -1, "failed": 0}', b"<html>"])
def test_what_is_no_count_is_none(answer: bytes) -> None:
    with endpoint(answer) as url:
        assert read(url) is None


def test_an_endpoint_that_fails_or_is_not_there_is_none() -> None:
    with endpoint(b'{"attempted": 1, "failed": 0}', status=500) as url:
        assert read(url) is None
    assert read("http://127.0.0.1:9/") is None
    assert read("no address") is None


class Noting:
    """As much of an open rotation as sampling needs, with a real account."""

    def __init__(self, path: Path) -> None:
        self.evidence = Evidence.open(path, Signer(mint_signing_key()), "r")

    def now(self) -> datetime:
        return datetime.now(UTC)

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        self.evidence.append(kind, body)

    def noted(self) -> list[Mapping[str, Any]]:
        return [entry.body for entry in self.evidence.entries if entry.kind == "handshakes"]


def test_handshakes_are_noted_from_the_first_moment_to_the_last(tmp_path: Path) -> None:
    rotation, numbers = Noting(tmp_path / "r.jsonl"), iter(range(100))
    with counted(cast("Rotation", rotation), lambda: Handshakes(attempted=next(numbers), failed=0)):
        while not rotation.noted():
            pass
    assert rotation.noted() == [{"attempted": 0, "failed": 0}, {"attempted": 1, "failed": 0}]


def test_a_source_that_has_no_answer_leaves_no_trace(tmp_path: Path) -> None:
    rotation = Noting(tmp_path / "r.jsonl")
    with counted(cast("Rotation", rotation), lambda: None):
        pass
    assert rotation.noted() == []


def test_an_account_that_was_finished_meanwhile_ends_nothing(tmp_path: Path) -> None:
    rotation = Noting(tmp_path / "r.jsonl")
    rotation.evidence.finish("completed")
    with pytest.raises(InvalidInput):
        rotation.note("handshakes", {"attempted": 1, "failed": 0})
    with counted(cast("Rotation", rotation), lambda: Handshakes(attempted=1, failed=0)):
        pass


def test_without_an_address_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPSTAN_HANDSHAKES_URL", raising=False)
    before = threading.active_count()
    with counted(cast("Rotation", SimpleNamespace())):
        assert threading.active_count() == before
