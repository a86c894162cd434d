"""Claims about the encrypted directory beyond the protocol: crashes, tampering, keys, permissions."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.errors import Conflict, Denied, InvalidInput, Retryable
from capstan.vaults import ROTATION_TAG, Material, State, Vault, open_vault
from capstan.vaults._files import locked
from capstan.vaults._sealing import ScryptCost
from capstan.vaults.local import LocalVault
from tests.vaults.harness import Minting

if TYPE_CHECKING:
    from pathlib import Path

R1 = {ROTATION_TAG: "r-1"}
CHEAP = ScryptCost(n=2**4)


def all_bytes(directory: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def test_nothing_on_disk_shows_the_key(tmp_path: Path, mint: Minting) -> None:
    LocalVault(tmp_path / "v").ensure("root", mint, R1)
    stored = all_bytes(tmp_path)
    pem = mint.made[0].unsafe_private_key_pem()
    assert all(line.encode() not in stored for line in pem.splitlines())


def test_only_the_owner_may_enter_and_read(tmp_path: Path, mint: Minting) -> None:
    old = os.umask(0)
    try:
        LocalVault(tmp_path / "v").ensure("root", mint, R1)
    finally:
        os.umask(old)
    for path in [tmp_path / "v", tmp_path / "v.key", *(tmp_path / "v").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("target", ["v", "v.key"])
def test_a_vault_that_others_can_read_is_not_opened(tmp_path: Path, mint: Minting, target: str) -> None:
    LocalVault(tmp_path / "v").ensure("root", mint, R1)
    (tmp_path / target).chmod(0o750)
    with pytest.raises(Denied, match="chmod"):
        LocalVault(tmp_path / "v")


def test_the_key_file_may_not_lie_inside_the_directory(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "v")
    for inside in (tmp_path / "v" / "key", tmp_path / "v" / "secrets" / "key", tmp_path / "link" / "key"):
        with pytest.raises(InvalidInput, match="must not lie"):
            LocalVault(tmp_path / "v", key_file=inside)


def test_without_its_key_file_a_vault_does_not_open_and_no_new_key_is_made(tmp_path: Path, mint: Minting) -> None:
    LocalVault(tmp_path / "v").ensure("root", mint, R1)
    (tmp_path / "v.key").unlink()
    with pytest.raises(InvalidInput, match="missing"):
        LocalVault(tmp_path / "v")
    assert not (tmp_path / "v.key").exists()


def test_a_wrong_key_file_is_told_apart_from_damage(tmp_path: Path, mint: Minting) -> None:
    LocalVault(tmp_path / "v").ensure("root", mint, R1)
    LocalVault(tmp_path / "w")
    shutil.copy(tmp_path / "w.key", tmp_path / "v.key")
    with pytest.raises(Denied, match="does not open"):
        LocalVault(tmp_path / "v")


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 31, "ab" * 33])
def test_a_key_file_with_something_else_in_it_is_refused(tmp_path: Path, content: str) -> None:
    LocalVault(tmp_path / "v")
    (tmp_path / "v.key").write_text(content)
    with pytest.raises(InvalidInput, match="no key file"):
        LocalVault(tmp_path / "v")


def test_a_passphrase_opens_what_it_closed_and_no_other_does(tmp_path: Path, mint: Minting) -> None:
    reference = LocalVault(tmp_path / "v", passphrase="correct horse", cost=CHEAP).ensure("root", mint, R1)
    assert LocalVault(tmp_path / "v", passphrase="correct horse").get(reference) == mint.made[0]
    with pytest.raises(Denied):
        LocalVault(tmp_path / "v", passphrase="battery staple")
    with pytest.raises(InvalidInput, match="needs its passphrase"):
        LocalVault(tmp_path / "v")
    assert not (tmp_path / "v.key").exists()


def test_the_default_cost_of_a_passphrase_is_that_of_the_recommendation() -> None:
    cost = ScryptCost()
    assert 128 * cost.n * cost.r == 128 * 2**20  # bytes


def test_a_passphrase_for_a_vault_with_a_key_file_is_refused(tmp_path: Path) -> None:
    LocalVault(tmp_path / "v")
    with pytest.raises(InvalidInput, match="not a passphrase"):
        LocalVault(tmp_path / "v", passphrase="x")


@pytest.mark.parametrize("field", ["n", "r", "p"])
def test_a_cost_that_would_eat_the_machine_is_refused_before_it_is_paid(tmp_path: Path, field: str) -> None:
    LocalVault(tmp_path / "v", passphrase="x", cost=CHEAP)
    header = json.loads((tmp_path / "v" / "vault.json").read_text())
    header[field] = 2**40
    (tmp_path / "v" / "vault.json").write_text(json.dumps(header))
    with pytest.raises(InvalidInput, match="not credible"):
        LocalVault(tmp_path / "v", passphrase="x")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format":"other/9","id":"a","key":"file","mac":""}'])
def test_a_directory_of_something_else_is_no_vault(tmp_path: Path, content: str) -> None:
    LocalVault(tmp_path / "v")
    (tmp_path / "v" / "vault.json").write_text(content)
    with pytest.raises(InvalidInput, match="no local vault"):
        LocalVault(tmp_path / "v")


def _entry(tmp_path: Path, mint: Minting) -> tuple[LocalVault, Path]:
    vault = LocalVault(tmp_path / "v")
    reference = vault.ensure("root", mint, R1)
    return vault, tmp_path / "v" / "secrets" / "root" / f"{reference.version}.json"


@pytest.mark.parametrize("field", ["tags", "fingerprint", "created", "content_sha256", "version", "name", "mac"])
def test_changed_metadata_is_noticed_by_every_call(tmp_path: Path, mint: Minting, field: str) -> None:
    vault, file = _entry(tmp_path, mint)
    record = json.loads(file.read_text())
    record[field] = {ROTATION_TAG: "r-2"} if field == "tags" else "0" * len(record[field])
    file.write_text(json.dumps(record))
    for call in (lambda: vault.ensure("root", mint, R1), vault.list, lambda: vault.find(R1)):
        with pytest.raises(InvalidInput, match="not what was stored"):
            call()
    assert len(mint.made) == 1


def test_a_changed_value_is_noticed_before_a_reference_to_it_is_given_out(tmp_path: Path, mint: Minting) -> None:
    vault, file = _entry(tmp_path, mint)
    record = json.loads(file.read_text())
    record["sealed"] = record["sealed"][:40] + ("A" if record["sealed"][40] != "A" else "B") + record["sealed"][41:]
    file.write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="not what was stored"):
        vault.ensure("root", mint, R1)


def test_values_exchanged_between_entries_are_noticed(tmp_path: Path, mint: Minting) -> None:
    vault = LocalVault(tmp_path / "v")
    references = [vault.ensure("root", mint, {ROTATION_TAG: tag}) for tag in ("a", "b")]
    files = [tmp_path / "v" / "secrets" / "root" / f"{reference.version}.json" for reference in references]
    records = [json.loads(file.read_text()) for file in files]
    records[0]["sealed"], records[1]["sealed"] = records[1]["sealed"], records[0]["sealed"]
    for file, record in zip(files, records, strict=True):
        file.write_text(json.dumps(record))
    for reference in references:
        with pytest.raises(InvalidInput, match="not what was stored"):
            vault.get(reference)


def test_an_entry_moved_to_another_name_is_noticed(tmp_path: Path, mint: Minting) -> None:
    vault, file = _entry(tmp_path, mint)
    shutil.copytree(file.parent, file.parent.with_name("issuer"))
    with pytest.raises(InvalidInput, match="not what was stored"):
        vault.ensure("issuer", mint, R1)


def test_an_entry_of_another_vault_is_noticed(tmp_path: Path, mint: Minting) -> None:
    _entry(tmp_path, mint)
    other = LocalVault(tmp_path / "w")
    shutil.copytree(tmp_path / "v" / "secrets" / "root", tmp_path / "w" / "secrets" / "root")
    with pytest.raises(InvalidInput, match="not what was stored"):
        other.list()


def test_a_destroyed_entry_cannot_be_undestroyed_by_editing(tmp_path: Path, mint: Minting) -> None:
    vault, file = _entry(tmp_path, mint)
    vault.destroy(vault.list()[0], "test")
    record = json.loads(file.read_text())
    del record["destroyed"]
    file.write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="not what was stored"):
        vault.list()


def test_destroying_leaves_no_ciphertext_of_the_key_in_the_directory(tmp_path: Path, mint: Minting) -> None:
    vault, file = _entry(tmp_path, mint)
    sealed = json.loads(file.read_text())["sealed"]
    vault.destroy(vault.list()[0], "test")
    assert sealed[:60].encode() not in all_bytes(tmp_path / "v")


def test_latest_is_what_was_put_last_even_if_the_clock_goes_back(tmp_path: Path, mint: Minting) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    times = iter([start, start - timedelta(days=1), start - timedelta(days=2)])
    vault = LocalVault(tmp_path / "v", clock=lambda: next(times))
    materials = [mint(), mint()]
    for material in materials:
        vault.put("ca-key", material, {})
    assert [vault.get(reference) for reference in vault.find({}, name="ca-key")] == materials
    assert vault.put("ca-key", materials[1], {}).fingerprint == materials[1].fingerprint
    assert len(vault.list()) == 2


def test_a_full_disk_is_an_error_to_try_again_and_a_vanished_directory_too(tmp_path: Path, mint: Minting) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    vault = LocalVault(tmp_path / "v")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(Retryable, match="file system failed"):
            vault.ensure("root", mint, R1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert vault.list() == []
    assert vault.ensure("root", mint, R1).fingerprint == mint.made[1].fingerprint
    shutil.rmtree(tmp_path / "v")
    with pytest.raises(Retryable):
        vault.list()


def test_whoever_waits_too_long_for_the_lock_is_told_to_come_again(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(Conflict, match="another process"), locked(tmp_path / "lock", 0.05):
        pass


class _KillAt:
    """Ends the process, as SIGKILL would, at the nth time it touches the file system."""

    def __init__(self, count: int, root: str) -> None:
        self.count, self.root = count, root

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.chmod") and str(args[0]).startswith(self.root):
            self.count -= 1
            if self.count == 0:
                os._exit(9)


def _ensure_in_child(root: Path, count: int) -> None:
    sys.addaudithook(_KillAt(count, str(root)))
    LocalVault(root / "v").ensure("root", Minting(), R1)


def test_a_crash_at_any_touch_of_the_file_system_leaves_a_vault_that_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    codes = []
    for count in range(1, 100):
        root = tmp_path / str(count)
        root.mkdir()
        child = context.Process(target=_ensure_in_child, args=(root, count))
        child.start()
        child.join()
        codes.append(child.exitcode)
        # Whatever it left: the next one finds or makes exactly one key, and tidies up.
        minting = Minting()
        before = LocalVault(root / "v").list()
        vault = LocalVault(root / "v")
        reference = vault.ensure("root", minting, R1)
        assert len(before) + len(minting.made) == 1, count
        assert [found.version for found in vault.list()] == [reference.version]
        assert vault.get(reference).fingerprint == reference.fingerprint
        assert [path for path in root.rglob("*") if "incomplete" in path.name] == [], count
        if child.exitcode == 0:
            break
    assert codes[-1] == 0
    assert codes.count(9) >= 10  # it did die in many places


def _ensure_and_exit(directory: Path, mark: Path) -> None:
    def slow() -> Material:
        with mark.open("a") as file:
            file.write("minted\n")
        return Minting()()

    LocalVault(directory).ensure("root", slow, R1)


def test_processes_that_mint_at_once_make_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_ensure_and_exit, args=(tmp_path / "v", tmp_path / "mark")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert (tmp_path / "mark").read_text() == "minted\n"


def test_vaults_may_share_a_key_file_even_if_made_at_once(tmp_path: Path) -> None:
    key, barrier = tmp_path / "shared.key", threading.Barrier(8)

    def make(index: int) -> None:
        barrier.wait()
        LocalVault(tmp_path / str(index), key_file=key).ensure("root", Minting(), R1)

    threads = [threading.Thread(target=make, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        vault = LocalVault(tmp_path / str(index), key_file=key)
        assert vault.get(vault.list()[0]).has_private_key


def test_open_vault_makes_a_local_one_and_finds_it_again(tmp_path: Path, mint: Minting) -> None:
    url = f"local:{tmp_path}/some/where"
    reference = open_vault(url, {}).ensure("root", mint, R1)
    assert open_vault(url, {}).get(reference) == mint.made[0]
    assert open_vault(url, {}).list()[0].state is State.ENABLED


def test_the_environment_says_where_the_key_is(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "keys").mkdir(mode=0o700)

    def opened(name: str, **environment: str) -> Vault:
        return open_vault(f"local:{tmp_path}/{name}", environment)

    opened("a", CAPSTAN_VAULT_KEY_FILE=str(tmp_path / "keys" / "a"))
    assert (tmp_path / "keys" / "a").exists()
    LocalVault(tmp_path / "b", passphrase="correct horse", cost=CHEAP)
    assert "scrypt" in opened("b", CAPSTAN_VAULT_PASSPHRASE_FILE=str(tmp_path / "pass")).describe().protection
    assert "scrypt" in opened("b", CAPSTAN_VAULT_PASSPHRASE="correct horse").describe().protection
    with pytest.raises(InvalidInput, match="more than one"):
        opened("b", CAPSTAN_VAULT_PASSPHRASE="x", CAPSTAN_VAULT_KEY_FILE="y")
    with pytest.raises(InvalidInput, match="cannot be read"):
        opened("b", CAPSTAN_VAULT_PASSPHRASE_FILE=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "url", ["", "local:relative", "local:", "http://x.vault.azure.net", "ftp://x", "/path", "https://"]
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_vault(url, {})
