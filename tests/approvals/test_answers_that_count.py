"""Which answers count, and above all which never do, for OpenSSH keys and for certificates."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan.approvals import ApproverPolicy, Question, tally
from capstan.approvals.tally import count
from capstan.cluster.record import Approval, Asked, RotationRecord
from tests.approvals.people import DAY, MINUTE, NOW, QUESTION, Kind, Person, also_as, certificate, listing, person

if TYPE_CHECKING:
    import datetime as dt

KINDS: tuple[Kind, ...] = ("ssh", "x509")
both_kinds = pytest.mark.parametrize("kind", KINDS)


def refusal(given: Approval, policy: ApproverPolicy, question: Question = QUESTION) -> str:
    """Why a single answer does not count; it must not."""
    found = count([given], question, policy)
    assert found.state == "open"
    assert found.counted == ()
    [(refused, reason)] = found.refused
    assert refused == given
    return reason


@both_kinds
def test_a_listed_persons_signed_answer_counts(kind: Kind) -> None:
    ada = person("ada", kind)
    given = ada.answer(ticket="CHG-1", comment="go")
    found = count([given], QUESTION, listing(ada))
    assert (found.state, found.counted, found.refused, found.missing) == ("approved", (given,), (), "")


@both_kinds
def test_an_unsigned_answer_never_counts(kind: Kind) -> None:
    ada = person("ada", kind)
    unsigned = ada.answer().model_copy(update={"signature": ""})
    assert refusal(unsigned, listing(ada)) == "it is not signed"


@both_kinds
@pytest.mark.parametrize(
    ("field", "value"),
    [("request", "ffffffffffff"), ("digest", "e" * 64), ("turn", 2), ("rotation", "2026-11-22"), ("domain", "prod-us"),
     ("gate", "distrust")],
)  # fmt: skip
def test_an_answer_to_another_question_never_counts_even_if_it_is_relabelled(
    kind: Kind, field: str, value: str | int
) -> None:
    ada = person("ada", kind)
    elsewhere = replace(QUESTION, **{field: value})
    replayed = ada.answer(question=elsewhere)
    assert count([replayed], elsewhere, listing(ada)).state == "approved"  # there it counts
    relabelled = replayed.model_copy(
        update={"request": QUESTION.request, "digest": QUESTION.digest, "gate": QUESTION.gate}
    )
    assert "not over this statement" in refusal(relabelled, listing(ada))


@both_kinds
def test_an_answer_to_another_request_says_so(kind: Kind) -> None:
    ada = person("ada", kind)
    assert "another request (ffffffffffff)" in refusal(
        ada.answer(question=replace(QUESTION, request="f" * 12)), listing(ada)
    )
    assert "something else (digest eeeeeeeeeeee)" in refusal(
        ada.answer(question=replace(QUESTION, digest="e" * 64)), listing(ada)
    )


@both_kinds
def test_an_unlisted_persons_answer_never_counts(kind: Kind) -> None:
    ada, eve = person("ada", kind), person("eve", kind)
    assert "'eve' is not listed" in refusal(eve.answer(), listing(ada))


@both_kinds
def test_a_listed_name_over_somebody_elses_signature_never_counts(kind: Kind) -> None:
    ada, eve = person("ada", kind), person("eve", kind)
    forged = replace(eve, name="ada").answer()
    reason = refusal(forged, listing(ada))
    assert "another key" in reason or "Signature verification failed" in reason
    # Nor does the answer of one listed person with another listed person's name written over it.
    renamed = eve.answer().model_copy(update={"by": "ada"})
    assert refusal(renamed, listing(ada, eve))


@both_kinds
@pytest.mark.parametrize(
    "change", [{"decision": "approved"}, {"ticket": "CHG-2"}, {"comment": "go ahead"}], ids=lambda c: next(iter(c))
)
def test_an_altered_answer_never_counts(kind: Kind, change: dict[str, str]) -> None:
    ada = person("ada", kind)
    altered = ada.answer("rejected", ticket="CHG-1", comment="no").model_copy(update=change)
    assert "not over this statement" in refusal(altered, listing(ada))


@both_kinds
def test_the_same_person_twice_is_one_vote_however_many_keys(kind: Kind) -> None:
    ada, bob = person("ada", kind), person("bob", kind)
    other = also_as(ada, "x509" if kind == "ssh" else "ssh")
    policy = listing(ada, other, bob, quorum=2)
    found = count([ada.answer(), other.answer(), ada.answer()], QUESTION, policy)
    assert found.state == "open"
    assert len(found.counted) == 1
    assert found.missing == "approved by ada; 1 more of bob needed"
    assert count([ada.answer(), bob.answer()], QUESTION, policy).state == "approved"


@both_kinds
def test_a_quorum_needs_that_many_different_people(kind: Kind) -> None:
    people = [person(name, kind) for name in ("ada", "bob", "eve")]
    policy = listing(*people, quorum=2)
    assert count([], QUESTION, policy).missing == "2 more of ada, bob, eve needed"
    assert count([people[0].answer()], QUESTION, policy).state == "open"
    assert count([people[0].answer(), people[2].answer()], QUESTION, policy).state == "approved"


@both_kinds
def test_one_persons_rejection_rejects_whatever_the_others_say(kind: Kind) -> None:
    ada, bob, eve = (person(name, kind) for name in ("ada", "bob", "eve"))
    answers = [ada.answer(), bob.answer("rejected"), eve.answer()]
    assert count(answers, QUESTION, listing(ada, bob, eve)).state == "rejected"
    assert count([ada.answer("held"), *answers], QUESTION, listing(ada, bob, eve)).state == "rejected"


def test_a_hold_holds_even_where_a_quorum_has_approved() -> None:
    ada, bob = person("ada"), person("bob")
    assert count([ada.answer(), bob.answer("held")], QUESTION, listing(ada, bob)).state == "held"


def test_a_persons_last_verified_answer_stands() -> None:
    ada = person("ada")
    policy = listing(ada)
    assert count([ada.answer("rejected"), ada.answer()], QUESTION, policy).state == "approved"
    assert count([ada.answer(), ada.answer("held")], QUESTION, policy).state == "held"
    # One that does not verify changes nothing, whatever it claims.
    forged = ada.answer().model_copy(update={"decision": "rejected"})
    assert count([ada.answer(), forged], QUESTION, policy).state == "approved"


def test_an_unlisted_persons_rejection_rejects_nothing() -> None:
    ada, eve = person("ada"), person("eve")
    assert count([ada.answer(), eve.answer("rejected")], QUESTION, listing(ada)).state == "approved"


def test_a_key_taken_off_the_list_counts_no_more() -> None:
    ada = person("ada")
    new = replace(ada, key=person("ada").key)
    assert count([ada.answer()], QUESTION, listing(ada)).state == "approved"
    assert "another key" in refusal(ada.answer(), listing(new))


def test_a_signature_of_the_other_kind_does_not_count() -> None:
    ssh, card = person("ada", "ssh"), person("bob", "x509")
    assert "no text between BEGIN and END" in refusal(
        ssh.answer().model_copy(update={"signature": card.answer().signature}), listing(ssh)
    )
    assert "the signature cannot count" in refusal(
        card.answer().model_copy(update={"signature": ssh.answer().signature}), listing(card)
    )


def test_an_answer_signed_while_the_certificate_was_not_valid_never_counts() -> None:
    ada = person("ada", "x509")
    ended = replace(ada, certificate=certificate(ada.key, "ada", start=NOW - 9 * DAY, end=NOW - MINUTE / 2))
    early = replace(ada, certificate=certificate(ada.key, "ada", start=NOW + MINUTE, end=NOW + DAY))
    for someone in (ended, early):
        assert "the certificate was not valid" in refusal(someone.answer(), listing(someone))
    # It stays good after the certificate has ended: what matters is when it was signed.
    question = replace(QUESTION, asked=NOW - 2 * MINUTE)
    assert count([ended.answer(question=question, at=NOW - MINUTE)], question, listing(ended)).state == "approved"


@pytest.mark.parametrize("off", [-30 * MINUTE, 30 * MINUTE], ids=["before it was asked", "after it was taken down"])
def test_an_answer_signed_at_another_time_than_it_was_asked_never_counts(off: dt.timedelta) -> None:
    ada = person("ada", "x509")
    given = ada.answer(at=NOW + off).model_copy(update={"at": NOW})
    assert "not signed while this was asked" in refusal(given, listing(ada))


def test_a_certificate_is_pinned_and_another_one_of_the_same_key_does_not_count() -> None:
    ada = person("ada", "x509")
    renewed = replace(ada, certificate=certificate(ada.key, "ada", end=NOW + 900 * DAY))
    assert "its header is not one of an approval: x5t#S256" in refusal(renewed.answer(), listing(ada))


def test_with_nobody_listed_the_last_answer_to_this_request_decides() -> None:
    def said(decision: str, request: str = QUESTION.request) -> Approval:
        return Approval(
            gate="issue", decision=decision, by="somebody", at=NOW, digest=QUESTION.digest, request=request
        )  # fmt: skip

    anyone = ApproverPolicy()
    assert count([], QUESTION, anyone).state == "open"
    assert count([said("approved")], QUESTION, anyone).state == "approved"
    assert count([said("approved"), said("rejected")], QUESTION, anyone).state == "rejected"
    assert count([said("rejected"), said("held")], QUESTION, anyone).state == "held"
    assert count([said("approved", request="ffffffffffff")], QUESTION, anyone).state == "open"


def test_answers_are_counted_from_the_record_against_what_was_asked_last() -> None:
    ada = person("ada")
    asked = Asked(id=QUESTION.request, digest=QUESTION.digest, at=QUESTION.asked, until=NOW + DAY)
    record = RotationRecord(
        rotation_id=QUESTION.rotation, domain=QUESTION.domain, system="linkerd", started=NOW,
        approvals=(ada.answer(),), asked={"issue": asked},
    )  # fmt: skip
    policy = listing(ada)
    assert tally(record, "issue", policy).state == "approved"
    assert tally(record, "trust", policy).state == "open"
    assert tally(record.model_copy(update={"turn": 2}), "issue", policy).state == "open"
    anew = asked.model_copy(update={"id": "ffffffffffff"})
    assert tally(record.model_copy(update={"asked": {"issue": anew}}), "issue", policy).state == "open"


def test_the_page_of_the_next_asking_says_what_became_of_earlier_answers() -> None:
    ada, bob, eve = person("ada"), person("bob"), person("eve")
    found = count([ada.answer(), eve.answer()], QUESTION, listing(ada, bob, quorum=2))
    assert found.notes(QUESTION.request) == (
        "An answer by eve does not count: 'eve' is not listed as an approver.",
        "So far: approved by ada; 1 more of bob needed.",
    )


def _dotted(parts: list[bytes]) -> str:
    """Three parts as a compact JWS has them."""
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


ADA, BOB, CAY = (person(name, kind) for name, kind in (("ada", "ssh"), ("bob", "x509"), ("cay", "ssh")))
EVERYBODY = listing(ADA, BOB, CAY, quorum=2)
ANSWERS: dict[tuple[Person, str], Approval] = {
    (someone, choice): someone.answer(choice)
    for someone in (ADA, BOB, CAY)
    for choice in ("approved", "rejected", "held")
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from([ADA, BOB, CAY]), st.sampled_from(["approved", "rejected", "held"]))))
def test_any_sequence_of_answers_comes_to_what_the_last_of_each_person_says(said: list[tuple[Person, str]]) -> None:
    last = {someone.name: choice for someone, choice in said}
    found = count([ANSWERS[each] for each in said], QUESTION, EVERYBODY)
    choices = list(last.values())
    expected = (
        "rejected" if "rejected" in choices
        else "held" if "held" in choices
        else "approved" if choices.count("approved") >= 2
        else "open"
    )  # fmt: skip
    assert found.state == expected
    assert {given.by: given.decision for given in found.counted} == last


ANYTHING = st.text(max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    said=st.fixed_dictionaries({"ticket": ANYTHING, "comment": ANYTHING}),
    signature=st.one_of(
        ANYTHING,
        ANYTHING.map(lambda text: f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----"),
        st.lists(st.binary(max_size=60), min_size=3, max_size=3).map(_dotted),
        st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
            st.sampled_from(["alg", "typ", "crit", "b64", "kid", "x5t#S256", "jwk"]), inner)).map(
            lambda header: _dotted([json.dumps(header).encode(), b"{}", b"x"])),
        st.integers(1, 3000).map(lambda deep: _dotted([b"[" * deep + b"]" * deep, b"{}", b"x"])),
    ),
    someone=st.sampled_from([ADA, BOB]),
)  # fmt: skip
def test_whatever_somebody_sends_as_an_answer_is_refused_and_breaks_nothing(
    said: dict[str, str], signature: str, someone: Person
) -> None:
    # A record that holds it is read at every later step: one answer that raised would end the rotation for good.
    sent = ANSWERS[someone, "approved"].model_copy(update={**said, "signature": signature})
    assert count([sent], QUESTION, EVERYBODY).counted == ()


@both_kinds
@pytest.mark.parametrize(
    "odd",
    [
        {"comment": "half a surrogate pair, as JSON may carry it: \ud800"},
        {"ticket": "\udfff"},
        {"signature": "\ud800.\ud800.\ud800"},
        {"signature": _dotted([b"[" * 100_000, b"{}", b"x"])},
        {"signature": "-----BEGIN SSH SIGNATURE-----\n\ud800\n-----END SSH SIGNATURE-----"},
    ],
    ids=["comment", "ticket", "signature", "nested", "armour"],
)
def test_text_that_is_no_text_is_refused_and_breaks_nothing(kind: Kind, odd: dict[str, str]) -> None:
    ada = person("ada", kind)
    assert refusal(ada.answer().model_copy(update=odd), listing(ada))


def test_answers_to_other_gates_are_neither_counted_nor_refused() -> None:
    ada = person("ada")
    elsewhere = ada.answer(question=replace(QUESTION, gate="trust"))
    found = count([elsewhere], QUESTION, listing(ada))
    assert (found.counted, found.refused) == ((), ())


@settings(max_examples=80, deadline=None)
@given(
    changed=st.fixed_dictionaries(
        {},
        optional={
            "decision": st.sampled_from(["approved", "rejected", "held"]),
            "by": st.sampled_from(["ada", "bob", "cay", "eve"]),
            "ticket": st.text(max_size=8),
            "comment": st.text(max_size=8),
            "request": st.sampled_from([QUESTION.request, "f" * 12]),
            "digest": st.sampled_from([QUESTION.digest, "e" * 64]),
        },
    ),
    someone=st.sampled_from([ADA, BOB]),
)
def test_no_change_to_a_signed_answer_lets_it_count_but_one_that_changes_nothing(
    changed: dict[str, str], someone: Person
) -> None:
    genuine = ANSWERS[someone, "approved"]
    altered = genuine.model_copy(update=changed)
    same = QUESTION.statement(altered) == QUESTION.statement(genuine) or (
        QUESTION.statement(altered).text() == QUESTION.statement(genuine).text()
    )
    counts = count([altered], QUESTION, EVERYBODY).counted != ()
    assert counts == (same and altered.request == QUESTION.request and altered.digest == QUESTION.digest)
