"""The text of root-cert.pem grows and shrinks such that one text contains the other."""

from __future__ import annotations

import pytest

from capstan.errors import InvalidInput, InvalidPem
from capstan.pki.bundle import Bundle
from capstan.systems.istio.texts import certificates_of, renewed_text, roots_text
from tests.pki.ca import make
from tests.systems.istio.writing import pem

A, B, C = (make(f"Root {letter}").certificate for letter in "ABC")


def test_a_text_that_holds_the_wanted_roots_stays_byte_for_byte() -> None:
    odd = f"# kept by hand\n\n{A.pem()}\n\n\n{B.pem()}"
    assert roots_text(odd, Bundle.of(B, A), "x") == odd


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n"])
def test_a_new_root_is_added_at_the_end_and_the_old_text_is_contained_in_the_new(ending: str) -> None:
    old = f"# somebody's words\n{A.pem()}{ending}"
    new = roots_text(old, Bundle.of(A, B), "x")
    assert new.startswith(old)
    assert certificates_of(new, "x") == (A, B)


def test_a_removed_root_leaves_a_piece_of_the_old_text() -> None:
    old = f"{A.pem()}\n{B.pem()}\n"
    for kept in (A, B):
        new = roots_text(old, Bundle.of(kept), "x")
        assert new in old
        assert certificates_of(new, "x") == (kept,)


def test_after_a_whole_rotation_the_text_is_exactly_the_new_roots() -> None:
    both = roots_text(pem(A), Bundle.of(A, B), "x")
    assert roots_text(both, Bundle.of(B), "x") == pem(B)


def test_a_way_back_ends_with_the_text_that_there_was() -> None:
    both = roots_text(pem(A), Bundle.of(A, B), "x")
    assert roots_text(both, Bundle.of(A), "x") == pem(A)


def test_of_three_roots_two_that_stand_together_stay_as_a_piece_and_two_apart_are_written_anew() -> None:
    old = pem(A, B, C)
    assert roots_text(old, Bundle.of(B, C), "x") in old
    apart = roots_text(old, Bundle.of(A, C), "x")
    assert certificates_of(apart, "x") == (A, C)


def test_roots_listed_twice_are_one_root_and_all_of_them_go() -> None:
    old = pem(A, B, B)
    assert roots_text(old, Bundle.of(A, B), "x") == old
    assert certificates_of(roots_text(old, Bundle.of(A), "x"), "x") == (A,)
    assert roots_text(old, Bundle.of(B), "x") in old


def test_what_is_kept_and_what_is_new_stand_side_by_side_when_roots_come_and_go_at_once() -> None:
    assert certificates_of(roots_text(pem(A, B), Bundle.of(B, C), "x"), "x") == (B, C)


def test_an_empty_source_gets_the_roots_and_nothing_is_never_written() -> None:
    assert roots_text("", Bundle.of(A), "x") == pem(A)
    with pytest.raises(InvalidInput):
        roots_text("", Bundle(), "x")


def test_a_text_that_cannot_be_read_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidPem, match="secret x"):
        roots_text(pem(A).replace("-----END", "-----EMD"), Bundle.of(A, B), "secret x")


def test_the_same_roots_become_another_text_once_for_every_switch_of_the_signer() -> None:
    forward = renewed_text(pem(A, B), B, "x")
    assert certificates_of(forward, "x") == (A, B, B)
    assert renewed_text(forward, B, "x") == forward
    back = renewed_text(forward, A, "x")
    assert forward in back
    assert renewed_text(back, B, "x") not in (forward, back)
