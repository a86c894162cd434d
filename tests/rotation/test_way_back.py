"""Whether there is a way back: from the vault and the issuers as they are, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.cluster.record import RotationRecord
from capstan.config import TrustDomain
from capstan.errors import EvidenceTampered, GateRefused, NotFound
from capstan.evidence import verify
from capstan.evidence.signer import Signer, mint_signing_key
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from capstan.rotation.accounts import account_path, begun, moved, open_account, reopened
from capstan.rotation.material import Target, back_up_issuer, issuer_material, minted_before
from capstan.rotation.turning import REJECTED, aims, before, rejected
from capstan.systems.base import IssuerMaterial
from capstan.trust.observation import ClusterObservation, Issuer, Observation
from capstan.vaults.base import ROTATION_TAG
from capstan.vaults.local import LocalVault
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
YEAR = timedelta(days=365)
OLD, OLDER, NEW = (mint_root(RootPolicy(common_name=f"root.{name}"), 1, NOW) for name in ("old", "older", "new"))
OLD_ISSUER = mint_issuer(IssuerPolicy(common_name="issuer.old"), OLD, NOW)
OLDER_ISSUER = mint_issuer(IssuerPolicy(common_name="issuer.older"), OLDER, NOW)
NEW_ISSUER = mint_issuer(IssuerPolicy(common_name="issuer.new"), NEW, NOW)
ROOT_OF = {OLD_ISSUER.certificate: OLD, OLDER_ISSUER.certificate: OLDER, NEW_ISSUER.certificate: NEW}
ORIGINAL = Bundle.of(OLD.certificate, OLDER.certificate)


@pytest.fixture
def vault(tmp_path: Path) -> LocalVault:
    return LocalVault(tmp_path / "vault")


def back_up(vault: LocalVault, issuer: Minted, cluster: str = "east") -> None:
    present = IssuerMaterial.of(issuer)
    back_up_issuer(vault, domain="mesh", rotation="r-1", cluster=cluster, present=present)


def there_was(vault: LocalVault, now: datetime = NOW, **present: Minted | None) -> Target:
    """What the way back goes to, with these issuers in place."""
    clusters = [
        ClusterObservation(name, frozenset({NEW.certificate.fingerprint}), (), _issuer(minted), (), 3600.0)
        for name, minted in present.items()
    ]
    certificates = {minted.certificate.fingerprint: minted.certificate for minted in present.values() if minted}
    seen = Observation(now, tuple(clusters))
    return before(vault, seen, certificates, domain="mesh", rotation="r-1", original=ORIGINAL, now=now, minted={})


def _issuer(minted: Minted | None) -> Issuer | None:
    if minted is None:
        return None
    root = ROOT_OF[minted.certificate].certificate
    return Issuer(minted.certificate.fingerprint, frozenset({root.fingerprint}), minted.certificate.not_after)


def test_an_issuer_that_was_replaced_comes_from_its_backup(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    found = there_was(vault, east=NEW_ISSUER)
    assert (found.root, found.issuers) == (OLD.certificate, {"east": OLD_ISSUER.certificate})
    assert issuer_material(vault, found.references["issuer/east"]).key == OLD_ISSUER.key


def test_so_it_does_after_a_switch_back_that_may_have_died_half_way(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    assert set(there_was(vault, east=OLD_ISSUER).references) == {"issuer/east"}


def test_an_issuer_that_was_never_replaced_is_left_alone(vault: LocalVault) -> None:
    found = there_was(vault, east=OLD_ISSUER)
    assert (found.issuers, found.references) == ({"east": OLD_ISSUER.certificate}, {})


def test_an_issuer_of_an_old_root_that_somebody_has_put_there_since_is_left_alone(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    found = there_was(vault, east=OLDER_ISSUER)
    assert (found.root, found.issuers, found.references) == (
        OLDER.certificate, {"east": OLDER_ISSUER.certificate}, {},
    )  # fmt: skip


def test_each_cluster_goes_back_to_its_own_issuer_under_its_own_root(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    back_up(vault, OLDER_ISSUER, "west")
    found = there_was(vault, east=NEW_ISSUER, west=NEW_ISSUER)
    assert found.issuers == {"east": OLD_ISSUER.certificate, "west": OLDER_ISSUER.certificate}


@pytest.mark.parametrize("present", [NEW_ISSUER, None], ids=["the new one", "not readable"])
def test_without_a_backup_of_an_issuer_that_was_replaced_the_way_is_closed(
    vault: LocalVault, present: Minted | None
) -> None:
    with pytest.raises(GateRefused, match="no way back: the issuer before the rotation is not in the vault") as closed:
        there_was(vault, east=present)
    assert "cluster east" in closed.value.where
    assert "r-1" in closed.value.observed


def test_with_a_destroyed_backup_the_way_is_closed(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    (reference,) = vault.find({ROTATION_TAG: "r-1"})
    vault.destroy(reference, "the retirement of the old root")
    with pytest.raises(GateRefused, match="not in the vault any more"):
        there_was(vault, east=NEW_ISSUER)


def test_with_a_backup_that_has_expired_the_way_is_closed_and_says_since_when(vault: LocalVault) -> None:
    back_up(vault, OLD_ISSUER)
    there_was(vault, OLD_ISSUER.certificate.not_after - timedelta(hours=1), east=NEW_ISSUER)
    with pytest.raises(GateRefused, match="no good any more") as closed:
        there_was(vault, OLD_ISSUER.certificate.not_after + timedelta(hours=1), east=NEW_ISSUER)
    assert f"valid until {OLD_ISSUER.certificate.not_after:%Y-%m-%d}" in closed.value.observed


def test_a_backup_that_chains_to_none_of_the_old_roots_is_no_way_back(vault: LocalVault) -> None:
    back_up(vault, NEW_ISSUER)
    with pytest.raises(GateRefused, match="no good any more"):
        there_was(vault, east=NEW_ISSUER)


def test_a_backup_keeps_what_stands_between_issuer_and_root(vault: LocalVault) -> None:
    above = mint_issuer(IssuerPolicy(common_name="above", path_length=1), OLD, NOW)
    below = mint_issuer(IssuerPolicy(common_name="below"), above, NOW)
    present = IssuerMaterial.of(below, [above.certificate])
    back_up_issuer(vault, domain="mesh", rotation="r-1", cluster="east", present=present)
    found = there_was(vault, east=NEW_ISSUER)
    assert found.root == OLD.certificate
    assert issuer_material(vault, found.references["issuer/east"]).chain == (below.certificate, above.certificate)


def test_what_was_minted_is_read_and_never_minted_on_the_way_back(vault: LocalVault) -> None:
    with pytest.raises(GateRefused, match="what this rotation minted cannot be read") as refused:
        minted_before(vault, domain="mesh", rotation="r-1", clusters=["east"])
    assert "capstan-mesh-root" in refused.value.where
    assert not vault.list()
    tags = {ROTATION_TAG: "r-1"}
    vault.ensure("capstan-mesh-root", lambda: Material.of(NEW), tags)
    vault.ensure("capstan-mesh-issuer-east", lambda: Material.of(NEW_ISSUER), tags)
    found = minted_before(vault, domain="mesh", rotation="r-1", clusters=["east"])
    assert (found.root, found.issuers) == (NEW.certificate, {"east": NEW_ISSUER.certificate})


def record(**fields: object) -> RotationRecord:
    base = RotationRecord(rotation_id="r-1", domain="mesh", system="linkerd", started=NOW, old=ORIGINAL.fingerprints)
    return base.model_copy(update=fields)


def test_on_the_way_back_old_and_new_change_places() -> None:
    new = NEW.certificate.fingerprint
    assert aims(record()) == (ORIGINAL.fingerprints, None)
    assert aims(record(new=new)) == (ORIGINAL.fingerprints, new)
    assert aims(record(new=new, direction="back")) == (frozenset({new}), ORIGINAL.fingerprints)
    assert aims(record(direction="back")) == (frozenset(), ORIGINAL.fingerprints)


def test_only_an_unfinished_way_back_that_a_rejection_began_is_gone_on_with_by_itself() -> None:
    because = {"turned-because": REJECTED}
    assert rejected(record(direction="back", notes=because))
    assert not rejected(record(direction="back", notes={"turned-because": "it was asked for"}))
    assert not rejected(record(direction="back", notes=because, finished=NOW))
    assert not rejected(record(direction="forward", notes=because))


def test_a_finished_record_goes_on_in_an_account_of_its_own_that_names_the_one_before(tmp_path: Path) -> None:
    domain, signer = TrustDomain(name="mesh", home=str(tmp_path)), Signer(mint_signing_key())
    first = open_account(domain, record(), signer, lambda: NOW)
    first.finish("completed")
    done = record(finished=NOW, notes={"evidence-head": first.head})
    assert open_account(domain, done, signer, lambda: NOW).finished
    again = record(notes=reopened(done))
    further = open_account(domain, again, signer, lambda: NOW)
    assert not further.finished
    further.finish("rolled back")
    third = open_account(domain, record(notes=reopened(record(notes={**again.notes, "evidence-head": further.head}))),
                         signer, lambda: NOW)  # fmt: skip
    assert [account_path(domain, "r-1", part).name for part in (1, 2, 3)] == [
        "mesh-r-1.jsonl", "mesh-r-1.2.jsonl", "mesh-r-1.3.jsonl",
    ]  # fmt: skip
    report = verify(third.path)
    assert report.continues is not None
    assert report.continues.continues is not None
    assert (report.outcome, report.continues.outcome, report.continues.continues.outcome) == (
        None, "rolled back", "completed",
    )  # fmt: skip


def test_an_account_that_is_on_another_machine_is_gone_on_from_and_both_verify_side_by_side(tmp_path: Path) -> None:
    signer = Signer(mint_signing_key())
    here, there = (TrustDomain(name="mesh", home=str(tmp_path / name)) for name in ("here", "there"))
    first = open_account(there, record(), signer, lambda: NOW)
    known = record(notes={"evidence-head": first.append("phase-left", {"phase": "prepare"}).digest})
    first.append("died", {})  # what was written after the head was noted is no tampering
    assert moved(there, known) is None
    assert moved(here, record()) is None  # nothing is known of an account that no phase was left with
    notes = moved(here, known)
    assert notes is not None
    second = open_account(here, record(notes=notes), signer, lambda: NOW)
    second.finish("completed")
    assert moved(here, record(notes=notes)) is None
    with pytest.raises(NotFound, match="is not beside it"):
        verify(second.path)
    (second.path.parent / first.path.name).write_bytes(first.path.read_bytes())
    report = verify(second.path)
    assert report.continues is not None
    assert (report.finished, report.continues.finished) == (True, False)
    # Without the line that was known, the first one is not the account that this one goes on from.
    lines = first.path.read_bytes().splitlines(keepends=True)
    (second.path.parent / first.path.name).write_bytes(lines[0])
    with pytest.raises(EvidenceTampered):
        verify(second.path)


def test_an_account_that_moved_again_before_a_phase_was_left_still_verifies(tmp_path: Path) -> None:
    """Workers without a common disk: a wait of a day may be taken up by another machine each time."""
    signer = Signer(mint_signing_key())
    one, two, three = (TrustDomain(name="mesh", home=str(tmp_path / name)) for name in ("one", "two", "three"))
    first = open_account(one, record(), signer, lambda: NOW)
    now = record(notes={"evidence-head": first.append("phase-left", {"phase": "prepare"}).digest})
    accounts = [first]
    for machine in (two, three):
        notes = moved(machine, now)
        assert notes is not None
        accounts.append(open_account(machine, now.model_copy(update={"notes": notes}), signer, lambda: NOW))
        now = now.model_copy(update={"notes": begun(notes, accounts[-1].head)})
    together = tmp_path / "together"
    together.mkdir()
    for account in accounts:
        (together / account.path.name).write_bytes(account.path.read_bytes())
    report = verify(together / "mesh-r-1.3.jsonl", head=now.notes["evidence-head"])
    assert report.continues is not None
    assert report.continues.continues is not None


def test_a_further_account_that_nobody_came_to_begin_is_begun_and_not_gone_on_from(tmp_path: Path) -> None:
    """Killed between the record, which was opened again, and the file."""
    domain, signer = TrustDomain(name="mesh", home=str(tmp_path)), Signer(mint_signing_key())
    first = open_account(domain, record(), signer, lambda: NOW)
    first.finish("completed")
    again = record(notes=reopened(record(finished=NOW, notes={"evidence-head": first.head})))
    assert moved(domain, again) is None
    second = open_account(domain, again, signer, lambda: NOW)
    assert second.path.name == "mesh-r-1.2.jsonl"
    assert verify(second.path).continues is not None
