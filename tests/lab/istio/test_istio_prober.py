"""The prober names the issuer of a leaf, also where certificates carry no key identifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.lab.prober import issuer_fingerprint
from tests.lab.istio.data_plane import WEB, Ca

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("identifiers", [True, False])
def test_the_issuer_of_a_leaf_is_found_among_issuers_of_one_name(tmp_path: Path, identifiers: bool) -> None:
    one, two = (Ca.mint(identifiers=identifiers) for _ in range(2))
    known = [ca.certificate for pair in (one, two) for ca in (pair.root, pair.intermediate)]
    for ca in (one, two):
        leaf = ca.material(WEB, tmp_path).leaf
        assert issuer_fingerprint(leaf, known) == ca.intermediate.fingerprint


def test_an_unknown_issuer_has_no_fingerprint(tmp_path: Path) -> None:
    leaf = Ca.mint().material(WEB, tmp_path).leaf
    assert issuer_fingerprint(leaf, [Ca.mint().intermediate.certificate]) == ""
