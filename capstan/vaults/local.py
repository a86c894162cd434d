"""The embedded default: a directory in which every secret is encrypted, one file per version.

    DIR/vault.json                        id, how the key is made, a value that tells a wrong key
    DIR/lock                              held while anything is written
    DIR/secrets/NAME/VERSION.json         metadata in clear (authenticated), value sealed with AES-256-GCM
    DIR.key                               the master key (unless there is a passphrase): beside the directory, not in it

What it protects against: reading the directory, a backup or an image of it (values are encrypted); changing a file in
it (detected, named). What it does not: whoever reads the directory *and* the key file or passphrase, or this process's
memory; deletion of files, or of the directory, or putting an older copy of it back (keep backups; a deleted version is
minted again). Key file and directory belong on different volumes where that is possible: CAPSTAN_VAULT_KEY_FILE.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from capstan.audit import audited_step
from capstan.errors import Denied, InvalidInput, NotFound
from capstan.vaults._files import (
    file_errors,
    locked,
    private_directory,
    remove_incomplete,
    sync_directory,
    write_atomically,
)
from capstan.vaults._sealing import ScryptCost, Sealer, damaged, master_from_file, master_from_passphrase
from capstan.vaults.base import (
    DESTROYED_TAG,
    ROTATION_TAG,
    Description,
    Fate,
    Reference,
    State,
    check_name,
    check_reason,
    check_size,
    checked_tags,
    destroyed_already,
)
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_FORMAT = "capstan-local-vault/1"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LocalVault:
    """A `Vault` in a directory.

    Args:
        directory: Where; made with mode 0700 if absent.
        passphrase: Derive the key from this.
        key_file: Or keep a random key here; default: the directory's name with `.key` appended.
        cost: Of the passphrase; only used when the vault is made.
        clock: The present, aware UTC.

    Raises:
        InvalidInput: Both passphrase and key file are given, the key file is inside the directory, the key is wrong, or
            this is no vault.
        Denied: Directory or key file are open to others, or not accessible.
    """

    def __init__(
        self,
        directory: Path,
        *,
        passphrase: str | None = None,
        key_file: Path | None = None,
        cost: ScryptCost | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._directory = directory.absolute()
        self._secrets = self._directory / "secrets"
        self._clock = clock
        if passphrase is not None and key_file is not None:
            raise InvalidInput("a vault has a passphrase or a key file, not both", where=self.url)
        self._key_file = key_file or self._directory.with_name(self._directory.name + ".key")
        if passphrase is None and self._key_file.resolve().is_relative_to(self._directory.resolve()):
            raise InvalidInput(
                "the key must not lie with what it protects",
                where=self.url,
                observed=f"key file {self._key_file}",
                expected="a key file outside the vault's directory",
            )
        private_directory(self._directory)
        with self._locked():
            self._secrets.mkdir(mode=0o700, exist_ok=True)
            header = self._directory / "vault.json"
            if not header.exists():
                self._create(header, passphrase, cost or ScryptCost())
            self._uses_passphrase, self._sealer = self._unlock(header, passphrase)

    @property
    def url(self) -> str:
        """`local:` and the absolute path."""
        return f"local:{self._directory}"

    def describe(self) -> Description:
        """See `Vault.describe`."""
        key = "a passphrase (scrypt)" if self._uses_passphrase else f"the key file {self._key_file}"
        return Description(self.url, "local", f"AES-256-GCM under {key}; no hardware, no access log")

    def ensure(self, name: str, mint: Callable[[], Material], tags: Mapping[str, str]) -> Reference:
        """See `Vault.ensure`. The lock is held while `mint` runs, so nobody else mints meanwhile."""
        check_name(name)
        tags = checked_tags(tags)
        with self._locked():
            for record in self._records(name):
                if ROTATION_TAG not in tags or record["tags"].get(ROTATION_TAG) == tags[ROTATION_TAG]:
                    return self._usable(record)
            return self._store(name, mint(), tags)

    def put(self, name: str, material: Material, tags: Mapping[str, str]) -> Reference:
        """See `Vault.put`."""
        check_name(name)
        tags = checked_tags(tags)
        with self._locked():
            records = self._records(name)
            if records and records[-1]["content_sha256"] == material.content_sha256 and records[-1]["tags"] == tags:
                return self._usable(records[-1])
            return self._store(name, material, tags)

    def get(self, reference: Reference) -> Material:
        """See `Vault.get`."""
        record = self._record(reference)
        material = self._open(record)
        if (material.content_sha256, material.fingerprint) != (reference.content_sha256, reference.fingerprint):
            raise InvalidInput(
                "the vault holds something else than the reference says",
                where=str(reference),
                observed=f"fingerprint {material.fingerprint}",
                expected=f"fingerprint {reference.fingerprint}",
            )
        return material

    def find(self, tags: Mapping[str, str], name: str | None = None) -> Sequence[Reference]:
        """See `Vault.find`."""
        found = [r for r in self.list() if (name is None or r.name == name) and tags.items() <= r.tag.items()]
        return sorted(found, key=lambda reference: (reference.created, reference.version))

    def list(self) -> Sequence[Reference]:
        """See `Vault.list`. Takes no lock: versions are immutable and appear in one piece."""
        with file_errors(self.url):
            names = sorted(path.name for path in self._secrets.iterdir() if path.is_dir())
        return [self._reference(record) for name in names for record in self._records(name)]

    def destroy(self, reference: Reference, reason: str) -> Fate:
        """See `Vault.destroy`. The file is replaced by one without the value; flash and backups may remember it."""
        check_reason(reason, reference)
        with self._locked():
            record = self._record(reference, destroyed_too=True)
            if "destroyed" not in record:
                self._write(record | {"destroyed": {"time": self._clock().isoformat(), "reason": reason}}, None)
        return Fate.ERASED

    # -- inside --

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with file_errors(self.url), locked(self._directory / "lock"):
            remove_incomplete(self._directory)
            yield

    def _create(self, header: Path, passphrase: str | None, cost: ScryptCost) -> None:
        vault_id = os.urandom(16).hex()
        fields: dict[str, Any] = {"format": _FORMAT, "id": vault_id, "key": "file"}
        if passphrase is None:
            master = master_from_file(self._key_file, create=True)
        else:
            salt = os.urandom(16)
            fields |= {"key": "scrypt", "salt": salt.hex(), "n": cost.n, "r": cost.r, "p": cost.p}
            master = master_from_passphrase(passphrase, salt, cost)
        mac = Sealer(master, vault_id).mac(fields)
        write_atomically(header, json.dumps(fields | {"mac": mac}, indent=1).encode() + b"\n")

    def _unlock(self, header: Path, passphrase: str | None) -> tuple[bool, Sealer]:
        try:
            fields = json.loads(header.read_bytes())
            mac = fields.pop("mac")
            vault_id, kind = fields["id"], fields["key"]
            known = fields["format"] == _FORMAT and kind in ("file", "scrypt")
            salt = bytes.fromhex(fields.get("salt", ""))
            cost = ScryptCost(int(fields.get("n", 2)), int(fields.get("r", 1)), int(fields.get("p", 1)))
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            known = False
        if not known:
            raise InvalidInput("this is no local vault", where=str(header), observed="something else", expected=_FORMAT)
        if kind == "scrypt" and passphrase is None:
            raise InvalidInput(
                "this vault needs its passphrase",
                where=self.url,
                observed="none was given",
                next_command="set CAPSTAN_VAULT_PASSPHRASE or CAPSTAN_VAULT_PASSPHRASE_FILE",
            )
        if kind == "file" and passphrase is not None:
            raise InvalidInput(
                "this vault has a key file, not a passphrase",
                where=self.url,
                observed="a passphrase was given",
                next_command="unset CAPSTAN_VAULT_PASSPHRASE and CAPSTAN_VAULT_PASSPHRASE_FILE",
            )
        if passphrase is None:
            master = master_from_file(self._key_file, create=False)
        else:
            master = master_from_passphrase(passphrase, salt, cost)
        sealer = Sealer(master, vault_id)
        try:
            sealer.check_mac(fields, mac, str(header))
        except InvalidInput:
            raise Denied(
                "this key does not open the vault",
                where=self.url,
                observed="a wrong passphrase or key file, or a changed vault.json",
                expected="the key the vault was made with",
            ) from None
        return kind == "scrypt", sealer

    def _records(self, name: str) -> Sequence[dict[str, Any]]:
        """All versions of one secret, oldest first, each authenticated."""
        with file_errors(self.url):
            return self._read_all(self._secrets / name)

    def _read_all(self, directory: Path) -> Sequence[dict[str, Any]]:
        files = sorted(directory.glob("[0-9a-f]*.json")) if directory.is_dir() else []
        records = [self._read(file) for file in files]
        return sorted(records, key=lambda record: (record["created"], record["version"]))

    def _record(self, reference: Reference, *, destroyed_too: bool = False) -> dict[str, Any]:
        check_name(reference.name)
        for record in self._records(reference.name):
            if record["version"] == reference.version:
                if "destroyed" in record and not destroyed_too:
                    raise NotFound(
                        "this version was destroyed", where=str(reference), observed=record["destroyed"]["reason"]
                    )
                return record
        raise NotFound(
            "no such version", where=str(reference), observed="no file of this name", expected="the stored version"
        )

    def _read(self, file: Path) -> dict[str, Any]:
        where = str(file)
        try:
            record = json.loads(file.read_bytes())
            sealed, mac = base64.b64decode(record.pop("sealed"), validate=True), record.pop("mac")
            self._sealer.check_mac(record, mac, where)
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise damaged(where) from None
        if (record["name"], f"{record['version']}.json") != (file.parent.name, file.name):
            raise damaged(where)
        return dict(record) | {"_sealed": sealed}

    def _open(self, record: Mapping[str, Any]) -> Material:
        where = f"{record['name']}@{record['version']} in {self.url}"
        metadata = {key: value for key, value in record.items() if key != "_sealed"}
        return Material.parse(self._sealer.open(record["_sealed"], metadata, where).decode(), where)

    def _usable(self, record: Mapping[str, Any]) -> Reference:
        """The reference, once it is sure that the value behind it can be had."""
        if "destroyed" in record:
            raise destroyed_already(self._reference(record), record["destroyed"]["reason"])
        self._open(record)
        return self._reference(record)

    def _store(self, name: str, material: Material, tags: Mapping[str, str]) -> Reference:
        check_size(material, f"{name} in {self.url}")
        (self._secrets / name).mkdir(mode=0o700, exist_ok=True)
        sync_directory(self._secrets)
        # Strictly increasing, so that "latest" holds even if the machine's clock was set back.
        created = self._clock()
        for other in self._records(name)[-1:]:
            created = max(created, datetime.fromisoformat(other["created"]) + timedelta(microseconds=1))
        record = {
            "name": name,
            "version": os.urandom(16).hex(),
            "created": created.astimezone(UTC).isoformat(timespec="microseconds"),
            "tags": dict(tags),
            "fingerprint": material.fingerprint,
            "content_sha256": material.content_sha256,
        }
        with audited_step(f"vault.store/{name}"):
            self._write(record, material)
        return self._reference(record)

    def _write(self, record: Mapping[str, Any], material: Material | None) -> None:
        metadata = {key: value for key, value in record.items() if key != "_sealed"}
        plain = material.unsafe_text().encode() if material else b""
        sealed = base64.b64encode(self._sealer.seal(plain, metadata)).decode()
        text = json.dumps(metadata | {"mac": self._sealer.mac(metadata), "sealed": sealed}, indent=1)
        write_atomically(self._secrets / record["name"] / f"{record['version']}.json", text.encode() + b"\n")

    def _reference(self, record: Mapping[str, Any]) -> Reference:
        tags = dict(record["tags"])
        if "destroyed" in record:
            tags[DESTROYED_TAG] = record["destroyed"]["reason"]
        return Reference(
            vault=self.url,
            name=record["name"],
            version=record["version"],
            fingerprint=record["fingerprint"],
            content_sha256=record["content_sha256"],
            tags=tuple(sorted(tags.items())),
            created=datetime.fromisoformat(record["created"]),
            state=State.DESTROYED if "destroyed" in record else State.ENABLED,
        )
