"""What runs in containers for whose image no program is registered.

An image the lab does not know becomes an application that is ready at once and ends on SIGTERM; in a pod of a Job it
completes at once. A command of the form `sh -c "..."` (or sleep, echo, true, false directly) is interpreted, as far
as `sleep N`, `echo TEXT`, `exit N`, `true` and `false` joined by ; && or newlines go: enough for examples and tests.
No process is ever started on the host.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container

UNKNOWN_COMMAND = 127  # what a shell returns for a command it cannot find


async def generic(container: Container) -> int:
    """Program of every container whose image is not registered."""
    words = [*container.command, *container.args]
    script = _script(words)
    if script is not None:
        container.set_ready(True)
        return await _interpret(container, script)
    container.set_ready(True)
    owners = container.pod["metadata"].get("ownerReferences") or []
    if any(owner.get("kind") == "Job" and owner.get("controller") for owner in owners):
        container.log(f"{container.image}: done")
        return 0
    await container.stopping.wait()
    return 0


def _script(words: list[str]) -> str | None:
    if not words:
        return None
    program = words[0].rsplit("/", 1)[-1]
    if program in ("sh", "bash", "ash") and len(words) >= 3 and words[1].startswith("-") and "c" in words[1]:
        return words[2]
    if program in ("sleep", "echo", "true", "false"):
        return shlex.join([program, *words[1:]])
    return None


async def _interpret(container: Container, script: str) -> int:
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    words: list[str] = []
    code, joiner = 0, ";"
    for token in [*lexer, ";"]:
        if token.strip("\n") not in ("", ";", "&&", "||"):
            words.append(token)
            continue
        run = bool(words) and not (joiner == "&&" and code) and not (joiner == "||" and not code)
        if run and words[0] == "exit":
            return int(words[1]) if len(words) > 1 else code
        if run:
            code = await _simple(container, words)
        if container.stopping.is_set():
            return 143  # 128 + SIGTERM: a shell's default
        words, joiner = [], token.strip("\n") or ";"
    return code


async def _simple(container: Container, words: list[str]) -> int:
    match words:
        case ["echo", *rest]:
            container.log(" ".join(rest))
        case ["sleep", "infinity"]:
            await container.stopping.wait()
        case ["sleep", seconds]:
            await container.sleep(float(seconds.rstrip("s")))
        case ["true" | ":"]:
            return 0
        case ["false"]:
            return 1
        case _:
            container.log(f"sh: {words[0]}: not found (the lab's containers run no host processes)")
            return UNKNOWN_COMMAND
    return 0
