"""What a rotation can be called: its id names files, tags and stamps, so what none of them takes is refused at once."""

from __future__ import annotations

import pytest

from capstan.config import TrustDomain, require_rotation_id
from capstan.errors import InvalidInput
from capstan.rotation import open_rotation


@pytest.mark.parametrize("rotation", ["2026-11-22", "root", "prod-eu-2027", "R.1_b", "x" * 63])
def test_an_id_that_files_tags_and_labels_take_is_taken(rotation: str) -> None:
    require_rotation_id(rotation)


@pytest.mark.parametrize("rotation", ["", "Bad Id!", "prod-eu/2027", "../../etc/x", "-a", "a-", "ä", "a\n", "x" * 64])
def test_an_id_that_could_leave_its_directory_or_break_a_tag_is_refused(rotation: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        require_rotation_id(rotation)
    assert refused.value.observed == repr(rotation)
    assert refused.value.next_command


def test_a_rotation_is_refused_for_its_id_before_any_cluster_is_asked() -> None:
    # The kubeconfig is not there either: whoever is refused for that had opened the cluster first.
    domain = TrustDomain(name="mesh", clusters=({"kubeconfig": "/absent"},))  # as from a form
    with pytest.raises(InvalidInput, match="cannot be a rotation's id"), open_rotation(domain, "prod-eu/2027"):
        pass
