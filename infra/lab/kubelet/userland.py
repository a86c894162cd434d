"""The commands that can be executed in a container: a small userland, in this process.

What it sees is what the container's program sees: the files behind its mounts, its environment, its name and address.
No process is ever started on the host. Commands: cat, date, echo, env, false, head, hostname, id, ls, mkdir, printenv,
pwd, rm, sleep, tail, tar (what `kubectl cp` uses), tee, test, true, wc, and the shell (see shell.py).
"""

from __future__ import annotations

import asyncio
import io
import os
import posixpath
import shutil
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from infra.lab.kubelet.runtime import Container

NOT_FOUND = 127
# Official images (Docker Hub's, named without a registry or an owner) that hold a shell.
OFFICIAL = frozenset(
    (
        *("almalinux", "alpine", "amazonlinux", "archlinux", "bash", "buildpack-deps", "busybox", "caddy"),
        *("centos", "debian", "fedora", "gcc", "golang", "haproxy", "httpd", "mariadb"),
        *("memcached", "mysql", "nginx", "node", "openjdk", "perl", "php", "postgres"),
        *("python", "rabbitmq", "redis", "rockylinux", "ruby", "rust", "tomcat", "traefik"),
        *("ubuntu"),
    )
)
_READ_ONLY_VOLUMES = ("secret", "configMap", "downwardAPI", "projected", "csi")


class UsageError(Exception):
    """A command cannot do what it was asked: text for standard error; the exit code is 1."""


@dataclass(frozen=True)
class Streams:
    """Standard input, output and error of one command. `read` returns b"" at the end of the input."""

    read: Callable[[], Awaitable[bytes]]
    out: Callable[[bytes], Awaitable[None]]
    err: Callable[[bytes], Awaitable[None]]

    async def all_input(self) -> bytes:
        """Everything up to the end of standard input."""
        data = b""
        while chunk := await self.read():
            data += chunk
        return data


def installed(image: str) -> bool:
    """Whether an image for which no program is registered holds this userland.

    Images of somebody (a registry or an owner is named) do, and the official ones that hold a shell. Of any other name
    without an owner the lab cannot know what is in it.
    """
    return "/" in image or image.partition("@")[0].partition(":")[0] in OFFICIAL


def host_path(container: Container, name: str) -> Path:
    """The file of this host behind a name in the container; no name leads out of it."""
    return container.path(posixpath.normpath("/" + name.lstrip("/")))


def writable(container: Container, name: str) -> Path:
    """As `host_path`, for writing. Raises UsageError where a container finds a read-only file system."""
    path = posixpath.normpath("/" + name.lstrip("/"))
    spec = container.pod["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or []}
    everyone = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    mounts = next((each.get("volumeMounts") or [] for each in everyone if each["name"] == container.name), [])
    inside = [m for m in mounts if path == m["mountPath"] or path.startswith(m["mountPath"].rstrip("/") + "/")]
    mount = max(inside, key=lambda m: len(m["mountPath"]), default=None)
    if mount and (mount.get("readOnly") or any(kind in volumes.get(mount["name"], {}) for kind in _READ_ONLY_VOLUMES)):
        raise UsageError(f"{name}: Read-only file system")
    return host_path(container, name)


async def run(container: Container, words: list[str], streams: Streams) -> int:
    """Run one command; its exit code.

    Raises FileNotFoundError when the userland has no such command.
    """
    name = words[0].rsplit("/", 1)[-1]
    if name in ("sh", "bash", "ash"):
        from infra.lab.kubelet import shell  # it runs commands of this module

        return await shell.run(container, words, streams)
    command = _COMMANDS.get(name)
    if command is None:
        raise FileNotFoundError(words[0])
    try:
        return await command(container, words[1:], streams)
    except UsageError as error:
        await streams.err(f"{name}: {error}\n".encode())
    except OSError as error:
        await streams.err(f"{name}: {error.strerror or error}\n".encode())
    return 1


async def _echo(_: Container, words: list[str], streams: Streams) -> int:
    bare = words[:1] == ["-n"]
    await streams.out(" ".join(words[1:] if bare else words).encode() + (b"" if bare else b"\n"))
    return 0


async def _cat(container: Container, words: list[str], streams: Streams) -> int:
    code = 0
    for name in words or ["-"]:
        if name == "-":
            while chunk := await streams.read():
                await streams.out(chunk)
            continue
        try:
            await streams.out(host_path(container, name).read_bytes())
        except OSError as error:
            await streams.err(f"cat: {name}: {error.strerror}\n".encode())
            code = 1
    return code


async def _ls(container: Container, words: list[str], streams: Streams) -> int:
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    names = [word for word in words if not word.startswith("-")] or ["/"]
    code = 0
    for name in names:
        path = host_path(container, name)
        if path.is_dir():
            found = {entry.name for entry in path.iterdir()}
            shown = sorted(entry for entry in found if set(flags) & {"a", "A"} or not entry.startswith("."))
            prefix = f"{name}:\n" if len(names) > 1 else ""
            await streams.out((prefix + "".join(f"{entry}\n" for entry in shown)).encode())
        elif path.exists():
            await streams.out(f"{name}\n".encode())
        else:
            await streams.err(f"ls: {name}: No such file or directory\n".encode())
            code = 1
    return code


async def _env(container: Container, words: list[str], streams: Streams) -> int:
    if words:
        missing = [name for name in words if name not in container.env]
        await streams.out("".join(f"{container.env[n]}\n" for n in words if n in container.env).encode())
        return 1 if missing else 0
    await streams.out("".join(f"{name}={value}\n" for name, value in container.env.items()).encode())
    return 0


async def _sleep(container: Container, words: list[str], _: Streams) -> int:
    try:
        seconds = float(words[0].rstrip("s")) if words and words[0] != "infinity" else 1e9
    except ValueError:
        raise UsageError(f"invalid number '{words[0]}'") from None
    return 143 if await container.sleep(seconds) else 0  # 128 + SIGTERM


async def _test(container: Container, words: list[str], _: Streams) -> int:
    checks: dict[str, Callable[[Path], bool]] = {
        "-e": lambda path: path.exists(),
        "-f": lambda path: path.is_file(),
        "-d": lambda path: path.is_dir(),
        "-s": lambda path: path.is_file() and path.stat().st_size > 0,
    }
    match words[:-1] if words[-1:] == ["]"] else words:
        case [flag, name] if flag in checks:
            return 0 if checks[flag](host_path(container, name)) else 1
        case ["-n", text]:
            return 0 if text else 1
        case ["-z", text]:
            return 1 if text else 0
        case [left, "=", right]:
            return 0 if left == right else 1
        case [left, "!=", right]:
            return 0 if left != right else 1
    raise UsageError("unknown operand")


async def _cut(container: Container, words: list[str], streams: Streams, from_end: bool) -> int:
    """`head` and `tail`: lines with -n (10 by default), bytes with -c; `tail -c+N` starts at byte N."""
    unit, count, names = "n", "10", list[str]()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word[:2] in ("-n", "-c"):
            unit, count = word[1], word[2:] or (rest.pop(0) if rest else "")
        else:
            names.append(word)
    if not count.lstrip("+").isdigit():
        raise UsageError(f"invalid number '{count}'")
    number = int(count.lstrip("+"))
    data = b"".join(host_path(container, name).read_bytes() for name in names) if names else await streams.all_input()
    pieces: list[bytes] = data.splitlines(keepends=True) if unit == "n" else [data[i : i + 1] for i in range(len(data))]
    if not from_end:
        kept = pieces[:number]
    elif count.startswith("+"):
        kept = pieces[max(number - 1, 0) :]
    else:
        kept = pieces[max(len(pieces) - number, 0) :]
    await streams.out(b"".join(kept))
    return 0


async def _head(container: Container, words: list[str], streams: Streams) -> int:
    return await _cut(container, words, streams, from_end=False)


async def _tail(container: Container, words: list[str], streams: Streams) -> int:
    return await _cut(container, words, streams, from_end=True)


async def _wc(container: Container, words: list[str], streams: Streams) -> int:
    names = [word for word in words if not word.startswith("-")]
    data = b"".join(host_path(container, name).read_bytes() for name in names) if names else await streams.all_input()
    counts = {"l": data.count(b"\n"), "w": len(data.split()), "c": len(data)}
    wanted = [flag for flag in "lwc" if any(word.startswith("-") and flag in word for word in words)] or list("lwc")
    await streams.out((" ".join([*(str(counts[flag]) for flag in wanted), *names]) + "\n").encode())
    return 0


async def _tee(container: Container, words: list[str], streams: Streams) -> int:
    data = await streams.all_input()
    for name in (word for word in words if word != "-a"):
        with writable(container, name).open("ab" if "-a" in words else "wb") as file:
            file.write(data)
    await streams.out(data)
    return 0


async def _mkdir(container: Container, words: list[str], _: Streams) -> int:
    for name in (word for word in words if word != "-p"):
        writable(container, name).mkdir(parents="-p" in words, exist_ok="-p" in words)
    return 0


async def _rm(container: Container, words: list[str], _: Streams) -> int:
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    for name in (word for word in words if not word.startswith("-")):
        path = writable(container, name)
        if path.is_dir() and not path.is_symlink():
            if not set(flags) & {"r", "R"}:
                raise UsageError(f"{name}: Is a directory")
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok="f" in flags)
    return 0


async def _tar(container: Container, words: list[str], streams: Streams) -> int:
    """`tar cf - PATH...` and `tar -xmf - -C DIRECTORY`: an archive on standard output or input."""
    flags, directory, names = "", "/", list[str]()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-C", "--directory") and rest:
            directory = rest.pop(0)
        elif word.startswith("-") and len(word) > 1:
            flags += word.lstrip("-")
        elif not flags:
            flags = word  # the old style without a dash
        elif word != "-":
            names.append(word)
    if "c" in flags:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w|") as archive:
            for name in names:
                source = host_path(container, posixpath.join(directory, name))
                if not source.exists():
                    raise UsageError(f"{name}: Cannot stat: No such file or directory")
                archive.add(source.resolve(), arcname=posixpath.normpath(name).lstrip("/"))
        await streams.out(buffer.getvalue())
        return 0
    if "x" not in flags:
        raise UsageError("You must specify one of the options -c and -x")
    target = writable(container, directory)
    if not target.is_dir():
        raise UsageError(f"{directory}: Cannot open: No such file or directory")
    data = await streams.all_input()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            archive.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise UsageError(f"This does not look like a tar archive: {error}") from None
    return 0


async def _text(streams: Streams, text: str) -> int:
    await streams.out(text.encode() + b"\n")
    return 0


async def _code(code: int) -> int:
    await asyncio.sleep(0)
    return code


_COMMANDS: dict[str, Callable[[Container, list[str], Streams], Awaitable[int]]] = {
    "[": _test,
    ":": lambda _, __, ___: _code(0),
    "cat": _cat,
    "date": lambda _, __, streams: _text(streams, datetime.now(UTC).strftime("%a %b %e %H:%M:%S UTC %Y")),
    "echo": _echo,
    "env": _env,
    "false": lambda _, __, ___: _code(1),
    "head": _head,
    "hostname": lambda container, _, streams: _text(streams, container.pod_name),
    "id": lambda _, __, streams: _text(streams, f"uid={os.getuid()} gid={os.getgid()}"),
    "ls": _ls,
    "mkdir": _mkdir,
    "printenv": _env,
    "pwd": lambda _, __, streams: _text(streams, "/"),
    "rm": _rm,
    "sleep": _sleep,
    "tail": _tail,
    "tar": _tar,
    "tee": _tee,
    "test": _test,
    "true": lambda _, __, ___: _code(0),
    "wc": _wc,
}
