"""linkerd-identity against every trace recorded from the real one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from infra.lab import pki
from tests.lab.linkerd import identity_replay as lab
from tests.lab.linkerd.identity_replay import WEB, Replay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

LINES_OF_A_START = 4


def run(directory: Path, script: Callable[[Replay], Awaitable[None]], version: str = "dev-undefined") -> Replay:
    """Run a script on a fresh API server and identity directory."""

    async def whole() -> Replay:
        async with lab.replay(directory, version) as session:
            await script(session)
            return session

    return asyncio.run(whole())


def check_against(trace: dict[str, Any], session: Replay, *, answers: bool = True) -> None:
    """Logs, Events and answers must be those of the trace, in wording and order."""
    assert [lab.normal(line) for line in session.lines] == lab.recorded_lines(trace)
    assert lab.event_writes(session.events) == lab.recorded_events(trace)
    if answers:
        assert [(code, lab.normal(details)) for code, details, _ in session.answers] == lab.recorded_answers(trace)
    wanted = [e for e in trace["events"] if e["source"] == "grpc" and e["code"] == "OK"]
    for event, answer in zip(wanted, [a for _, _, a in session.answers if a is not None], strict=True):
        recorded = trace["certs"][event["response"]["leaf_certificate"].removeprefix("DER of ")]
        described, expected = lab.describe(answer.leaf), lab.recorded_leaf(recorded)
        if expected["lifetime_s"] != 86440:  # clamped to an issuer that ends soon: the end is checked elsewhere
            described["lifetime_s"] = expected["lifetime_s"]
        assert described == expected
        assert len(answer.intermediates) == len(event["response"]["intermediate_certificates"])
        assert x509.load_der_x509_certificate(answer.leaf).not_valid_after_utc == answer.valid_until


def event_count(trace: dict[str, Any]) -> int:
    return sum(1 for event in trace["events"] if event["source"] == "kube-event")


def authority(answer: tuple[str, str, Any]) -> bytes:
    """The authority key identifier of an issued leaf."""
    return pki.authority_key(x509.load_der_x509_certificate(answer[2].leaf))


def test_01_a_swapped_issuer_of_the_same_root_is_used_from_the_next_leaf_on(tmp_path: Path) -> None:
    trace = lab.load("01-issuer-swap-same-root")
    made = lab.mint(trace, datetime.now(UTC))

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(made["issuer A1"])
        session.start()
        await session.wait_ready()
        assert await session.get("/ready") == (200, "ok\n")
        assert await session.get("/ping") == (200, "pong\n")
        assert (await session.get("/metrics"))[1] == ""
        assert len(session.log()) == LINES_OF_A_START
        first = await session.certify()
        await session.swap_and_wait(made["issuer A2"].certificate_pem, made["issuer A2"].key_pem)
        assert await session.get("/ready") == (200, "ok\n")
        metrics = (await session.get("/metrics"))[1]
        assert all(line.startswith("grpc_server_") for line in metrics.splitlines())
        second = await session.certify()
        assert authority(first) == pki.subject_key(made["issuer A1"].certificate)
        assert authority(second) == pki.subject_key(made["issuer A2"].certificate)
        assert second[2] is not None
        assert x509.load_der_x509_certificate(second[2].intermediates[0]) == made["issuer A2"].certificate
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


@pytest.mark.parametrize("name", ["02-issuer-swap-unknown-root-same-name", "03-issuer-swap-unknown-root-other-name"])
def test_02_03_an_issuer_of_an_unknown_root_is_skipped_and_the_old_one_goes_on_signing(
    tmp_path: Path, name: str
) -> None:
    trace = lab.load(name)
    made = lab.mint(trace, datetime.now(UTC))

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(made["issuer A1"])
        session.start()
        await session.wait_ready()
        before = await session.certify()
        await session.swap_and_wait(made["issuer B1"].certificate_pem, made["issuer B1"].key_pem)
        assert await session.get("/ready") == (200, "ok\n")
        after = await session.certify()
        assert authority(after) == authority(before)
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


def test_04_every_kind_of_broken_issuer_is_skipped_in_the_recorded_words(tmp_path: Path) -> None:
    trace = lab.load("04-issuer-swap-broken-material")
    now = datetime.now(UTC)
    made = lab.mint(trace, now)
    a1, a2 = made["issuer A1"], made["issuer A2"]
    pkcs8 = a2.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    unsigning = lab.no_ca(made["root A"], now)
    swaps = [
        (a2.certificate_pem[: len(a2.certificate_pem) // 2], a2.key_pem),
        ("", a2.key_pem),
        (a2.certificate_pem + "\n", a2.key_pem),
        (a2.certificate_pem, "not a key\n"),
        (a2.certificate_pem, pkcs8),
        (a2.certificate_pem, a1.key_pem),
        (a2.certificate_pem + "# by hand\n", a2.key_pem),
        (unsigning.certificate_pem, unsigning.key_pem),
        lab.rsa_issuer(made["root A"], now),
        (a2.certificate_pem, a2.key_pem),
    ]

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(a1)
        session.start()
        await session.wait_ready()
        await session.certify()
        for number, (certificate, key) in enumerate(swaps):
            await session.swap_and_wait(certificate, key)
            answer = await session.certify()
            if answer[0] == "OK":
                wanted = a1 if number < 4 else a2
                assert authority(answer) == pki.subject_key(wanted.certificate)
        metrics = (await session.get("/metrics"))[1]
        assert 'grpc_server_handled_total{grpc_code="Internal"' in metrics
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    session = run(tmp_path, script)
    check_against(trace, session)


def test_05_changed_roots_are_not_noticed_until_a_restart(tmp_path: Path) -> None:
    trace = lab.load("05-roots-changed-without-restart")
    made = lab.mint(trace, datetime.now(UTC))

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(made["issuer A1"])
        session.start()
        await session.wait_ready()
        await session.certify()
        session.give_roots(made["root A"], made["root B"])
        await asyncio.sleep(0.2)
        await session.swap_and_wait(made["issuer B1"].certificate_pem, made["issuer B1"].key_pem)
        still = await session.certify()
        assert authority(still) == pki.subject_key(made["issuer A1"].certificate)
        assert await session.exit_code(terminate=True) == 0
        session.start()
        await session.wait_ready()
        now = await session.certify()
        assert authority(now) == pki.subject_key(made["issuer B1"].certificate)
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


def test_06_every_failing_start_ends_with_code_1_and_one_fatal_line(tmp_path: Path) -> None:
    trace = lab.load("06-start-failures")
    made = lab.mint(trace, datetime.now(UTC))
    root, a1 = made["root A"], made["issuer A1"]
    expired = made["expired root"]

    async def script(session: Replay) -> None:
        async def case(pair: tuple[str, str], *roots: pki.KeyPair, suffix: str = "", good: bool = False) -> None:
            session.give_issuer(*pair)
            session.give_roots(*roots, suffix=suffix)
            session.start()
            if good:
                await session.wait_ready()
                assert await session.get("/ready") == (200, "ok\n")
            assert await session.exit_code(terminate=good) == (0 if good else 1)

        usual = (a1.certificate_pem, a1.key_pem)
        await case((made["issuer B1"].certificate_pem, made["issuer B1"].key_pem), root)
        await case(usual, root, suffix="\n")
        await case(usual, root, suffix="# the end\n")
        await case(usual)
        await case((made["expired issuer"].certificate_pem, made["expired issuer"].key_pem), root)
        under = made["issuer under expired root"]
        await case((under.certificate_pem, under.key_pem), expired)
        await case((a1.certificate_pem, under.key_pem), root)
        await case(usual, root, good=True)
        await case(usual, root, root, expired, good=True)
        session.give_issuer(*usual)
        session.roots.swap({})
        session.start()
        assert await session.exit_code() == 1
        await asyncio.sleep(0.1)
        assert session.events == []

    session = run(tmp_path, script)
    # Two starts race in the recording: admin server and a roots file that is missing. Everything else is in order.
    assert [lab.normal(line) for line in session.lines] == lab.recorded_lines(trace)


@pytest.mark.slow
def test_07_an_issuer_that_expires_in_memory_is_silent_until_the_next_certify(tmp_path: Path) -> None:
    trace = lab.load("07-issuer-expires-while-running")
    now = datetime.now(UTC)
    made = lab.mint(trace, now, {"issuer, short": 2.0})

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(made["issuer, short"])
        session.start()
        await session.wait_ready()
        first = await session.certify()
        assert first[2] is not None
        assert first[2].valid_until == made["issuer, short"].certificate.not_valid_after_utc
        lines = len(session.log())
        end = made["issuer, short"].certificate.not_valid_after_utc
        await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 1.1)
        assert await session.get("/ready") == (200, "ok\n")
        assert len(session.log()) == lines
        await session.certify()
        await session.certify()
        for label in ("issuer A2", "expired issuer"):
            await session.swap_and_wait(made[label].certificate_pem, made[label].key_pem)
            await session.certify()
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


def test_08_a_leaf_has_the_recorded_shape_and_every_refusal_its_code_and_words(tmp_path: Path) -> None:
    trace = lab.load("08-certify-leaf-shape")
    made = lab.mint(trace, datetime.now(UTC))
    a2 = made["issuer A2"]

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(made["issuer A1"])
        session.start()
        await session.wait_ready()
        await session.certify()
        await session.certify(request=lab.csr(common_name=None))
        await session.certify(name="")
        await session.certify(token="")
        await session.certify(request=b"")
        await session.certify(token="garbage")
        await session.certify(token=await session.token("emoji", "web", None))
        await session.certify(token=await session.token("emoji", "web", "other"))
        await session.certify(token=await session.token("linkerd", "linkerd-identity", "identity.l5d.io"))
        await session.certify(request=lab.csr(sans=(WEB, "x.y")))
        await session.certify(request=lab.csr(sans=("x." + WEB.partition(".")[2],)))
        await session.certify(request=lab.csr(sans=(WEB, "spiffe://x/y")))
        await session.certify(request=lab.csr(common_name="other"))
        await session.certify(request=lab.csr(key=rsa.generate_private_key(65537, 2048)))
        await session.certify(request=lab.csr(key=ec.generate_private_key(ec.SECP384R1())))
        await session.swap_and_wait(a2.certificate_pem + made["root A"].certificate_pem, a2.key_pem)
        both = await session.certify()
        assert both[2] is not None
        assert [x509.load_der_x509_certificate(der) for der in both[2].intermediates] == [
            a2.certificate,
            made["root A"].certificate,
        ]
        a3 = made["issuer A3, 2 h left"]
        await session.swap_and_wait(a3.certificate_pem, a3.key_pem)
        short = await session.certify()
        assert short[2] is not None
        assert short[2].valid_until == a3.certificate.not_valid_after_utc
        await session.settle_events(event_count(trace))
        recorded = next(e["lines"] for e in trace["events"] if e["source"] == "metric")
        metrics = (await session.get("/metrics"))[1].splitlines()
        assert set(recorded) <= set(metrics)
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


def test_09_only_a_swap_counts_and_every_swap_gives_an_event_even_of_the_same_content(tmp_path: Path) -> None:
    trace = lab.load("09-in-place-write-then-repeated-swap")
    made = lab.mint(trace, datetime.now(UTC))
    a1, a2 = made["issuer A1"], made["issuer A2"]

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(a1)
        session.start()
        await session.wait_ready()
        await session.certify()
        session.issuer.write_in_place({"tls.crt": a2.certificate_pem, "tls.key": a2.key_pem})
        await asyncio.sleep(0.2)
        unchanged = await session.certify()
        assert authority(unchanged) == pki.subject_key(a1.certificate)
        await session.swap_and_wait(a2.certificate_pem, a2.key_pem)
        await session.certify()
        for _ in range(3):
            await session.swap_and_wait(a2.certificate_pem, a2.key_pem)
        await session.certify()
        await session.settle_events(event_count(trace))
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


@pytest.mark.slow
def test_12_of_forty_issuances_and_forty_reloads_only_25_events_each_survive(tmp_path: Path) -> None:
    trace = lab.load("12-event-flood")
    made = lab.mint(trace, datetime.now(UTC))
    a1 = made["issuer A1"]

    async def script(session: Replay) -> None:
        session.give_roots(made["root A"])
        session.give_pair(a1)
        session.start()
        await session.wait_ready()
        token = await session.token("emoji", "web", "identity.l5d.io")
        for _ in range(40):
            assert (await session.certify(token=token))[0] == "OK"
        for number in range(40):
            await session.swap_and_wait(a1.certificate_pem if number % 2 == 0 else "", a1.key_pem)
        await session.settle_events(event_count(trace))
        await asyncio.sleep(0.3)
        assert await session.exit_code(terminate=True) == 0

    check_against(trace, run(tmp_path, script))


def test_a_version_from_2_18_on_shows_its_issuer_in_log_and_metrics(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    root = pki.mint_root(now=now)
    issuer = pki.mint_issuer(root, now=now)

    async def script(session: Replay) -> None:
        session.give_roots(root)
        session.give_pair(issuer)
        session.start()
        await session.wait_ready()
        assert any('msg="Issuer cert loaded" invalid_after=' in line for line in session.log())
        metric = next(m for m in (await session.get("/metrics"))[1].splitlines() if m.startswith("issuer_cert_ttl"))
        left = (issuer.certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
        assert abs(float(metric.split()[1]) - left) < 5
        assert await session.exit_code(terminate=True) == 0

    run(tmp_path, script, version="edge-26.8.3")


def test_a_dead_watcher_reloads_nothing_and_says_nothing(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    root = pki.mint_root(now=now)
    first, second = pki.mint_issuer(root, now=now), pki.mint_issuer(root, now=now)

    async def script(session: Replay) -> None:
        session.give_roots(root)
        session.give_pair(first)
        session.start({"lab.capstan.dev/identity-watcher-dead": "true"})
        await session.wait_ready()
        session.give_pair(second)
        await asyncio.sleep(0.3)
        assert len(session.log()) == LINES_OF_A_START
        assert authority(await session.certify()) == pki.subject_key(first.certificate)
        assert await session.exit_code(terminate=True) == 0

    run(tmp_path, script)
