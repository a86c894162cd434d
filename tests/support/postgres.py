"""A PostgreSQL server of a test's own, from the distribution's package."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.leash import Leash
from tests.support.prefect_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_SECONDS = 60.0


def binaries() -> Path | None:
    """The directory of the newest PostgreSQL programs on this machine (Debian's layout, else PATH); None without."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


def unprivileged() -> dict[str, Any]:
    """Arguments of Popen that make the programs run as somebody they accept: they refuse root.

    Raises:
        KeyError: We are root and there is no user to become.
    """
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def postgres() -> Iterator[str]:
    """Run one on loopback with an empty database `prefect`; yields its URL for SQLAlchemy with asyncpg.

    Raises:
        AssertionError: It does not start, or there are no programs (ask `binaries` first).
    """
    programs = binaries()
    assert programs is not None, "no PostgreSQL here"
    identity = unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="capstan-postgres-"))
    if identity:
        os.chown(directory, identity["user"], identity["group"])
    data, port = directory / "data", free_port()
    try:
        with Leash() as leash:
            environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **leash.environment}

            def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [programs / name, *arguments], capture_output=True, text=True, check=False, cwd="/",
                    env=environment, **identity,
                )  # fmt: skip

            made = program("initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
            assert made.returncode == 0, made.stderr
            server = subprocess.Popen(
                [
                    programs / "postgres", "-D", data, "-p", str(port),
                    *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={directory}"),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                env=environment, **identity,
            )  # fmt: skip
            try:
                deadline = time.monotonic() + READY_SECONDS
                while (made := program("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "prefect")) \
                        .returncode != 0:  # fmt: skip
                    assert server.poll() is None, "PostgreSQL has ended"
                    assert time.monotonic() < deadline, made.stderr
                    time.sleep(0.2)
                yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/prefect"
            finally:
                server.terminate()
                server.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
