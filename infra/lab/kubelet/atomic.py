"""Volume contents as a real kubelet writes them: all files change at once, through one symbolic link.

Layout (k8s.io/kubernetes pkg/volume/util/atomic_writer.go documents it): the files are in a directory named after the
time, `..data` points to that directory, and what the container sees are links `NAME -> ..data/NAME`. An update writes
a new directory and renames a new `..data` over the old one. Programs that watch for changes wait for the creation of
`..data`, never for a change of the files.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DATA = "..data"


@dataclass(frozen=True)
class Entry:
    """One file: its bytes and permission bits."""

    content: bytes
    mode: int = 0o644


def write(target: Path, payload: dict[str, Entry]) -> bool:
    """Make `target` show exactly `payload` (relative path -> file). Returns False, touching nothing, if it already
    does.

    Raises ValueError for a path that is absolute, contains "..", or starts with "..".
    """
    for path in payload:
        parts = Path(path).parts
        if not parts or Path(path).is_absolute() or ".." in parts or parts[0].startswith(".."):
            raise ValueError(f"invalid path {path!r} in a volume: it must be relative, without '..'")
    target.mkdir(parents=True, exist_ok=True)
    data = target / DATA
    old = target / data.readlink() if data.is_symlink() else None
    if old is not None and _read(old) == payload:
        return False
    stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
    fresh = Path(tempfile.mkdtemp(prefix=stamp, dir=target))
    fresh.chmod(0o755)
    for path, entry in payload.items():
        file = fresh / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(entry.content)
        file.chmod(entry.mode)
    swap = target / "..data_tmp"
    swap.unlink(missing_ok=True)
    swap.symlink_to(fresh.name)
    swap.rename(data)
    visible = {Path(path).parts[0] for path in payload}
    for name in visible:
        if not (target / name).is_symlink():
            (target / name).symlink_to(Path(DATA) / name)
    for link in target.iterdir():
        if link.is_symlink() and link.name not in visible and not link.name.startswith(".."):
            link.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _read(directory: Path) -> dict[str, Entry]:
    return {
        str(file.relative_to(directory)): Entry(file.read_bytes(), file.stat().st_mode & 0o777)
        for file in directory.rglob("*")
        if file.is_file()
    }
