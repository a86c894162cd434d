"""The shell of the userland: `sh -c SCRIPT`, or a script on standard input.

As far as it goes (POSIX.1-2024, Shell Command Language): simple commands, `;` `&&` `||` and newlines, pipelines,
redirections (`<` `>` `>>` `2>` `2>&1` `>&2`), quoting, `$NAME`, `${NAME}`, `$?`, `exit`. Not: functions, loops,
conditionals, substitution of commands, globs; a script that uses them fails with exit code 2.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.lab.kubelet import userland

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from infra.lab.kubelet.runtime import Container
    from infra.lab.kubelet.userland import Streams

SYNTAX_ERROR = 2
_OPERATORS = ("2>&1", ">&2", "1>&2", "2>>", "2>", ">>", ">", "<", "&&", "||", "|", ";", "\n")
_JOINERS = ("&&", "||", ";", "\n")
_UNSUPPORTED = {"if", "for", "while", "until", "case", "function", "{", "("}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+|\?))")


class ScriptError(Exception):
    """The script is none this shell can read."""


@dataclass
class _Word:
    """Its parts, each with whether variables are replaced in it."""

    parts: list[tuple[str, bool]] = field(default_factory=list)

    def expand(self, variables: dict[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            return variables.get(match[1] or match[2], "")

        return "".join(_VARIABLE.sub(value, text) if replaced else text for text, replaced in self.parts)


async def run(container: Container, words: list[str], streams: Streams) -> int:
    """`sh`, `sh -c SCRIPT [NAME ARGUMENT...]`; its exit code."""
    script, arguments = "", list[str]()
    match words[1:]:
        case [flag, text, *rest] if flag.startswith("-") and "c" in flag:
            script, arguments = text, rest
        case [] | ["-" | "-i" | "-l" | "-s"]:
            script = (await streams.all_input()).decode("utf-8", "replace")
        case [flag] if flag.startswith("-") and "c" in flag:
            await streams.err(f"{words[0]}: -c requires an argument\n".encode())
            return SYNTAX_ERROR
        case [name, *rest]:
            try:
                script = userland.host_path(container, name).read_text()
            except OSError as error:
                await streams.err(f"{words[0]}: {name}: {error.strerror}\n".encode())
                return userland.NOT_FOUND
            arguments = [name, *rest]
    variables = {**container.env, "HOSTNAME": container.pod_name, "?": "0"}
    variables |= {str(number): argument for number, argument in enumerate(arguments)}
    try:
        return await _script(container, list(_tokens(script)), streams, variables)
    except ScriptError as error:
        await streams.err(f"{words[0]}: syntax error: {error}\n".encode())
        return SYNTAX_ERROR


def _tokens(script: str) -> Iterator[_Word | str]:
    """Words and operators. Raises ScriptError for an open quote and for what this shell cannot do."""
    at, word = 0, None
    while at < len(script):
        operator = next((op for op in _OPERATORS if script.startswith(op, at) and (word is None or op[0] != "2")), None)
        character = script[at]
        if character in " \t\r" or operator is not None:
            if word is not None:
                yield word
                word = None
            if operator is not None:
                yield operator
            at += len(operator or " ")
            continue
        if character == "#" and word is None:
            at = script.find("\n", at) if "\n" in script[at:] else len(script)
            continue
        if character in "`&()" or script.startswith("$(", at):
            raise ScriptError(f"{character!r} is not supported by the lab's shell")
        word = word or _Word()
        if character in "'\"":
            end = at + 1
            while end < len(script) and script[end] != character:
                end += 2 if character == '"' and script[end] == "\\" else 1
            if end >= len(script):
                raise ScriptError("unterminated quoted string")
            text = script[at + 1 : end]
            word.parts.append((re.sub(r'\\([$`"\\])', r"\1", text) if character == '"' else text, character == '"'))
            at = end + 1
        elif character == "\\":
            word.parts.append((script[at + 1 : at + 2], False))
            at += 2
        else:
            word.parts.append((character, True) if character != "$" else (_variable(script, at), True))
            at += len(word.parts[-1][0])
    if word is not None:
        yield word


def _variable(script: str, at: int) -> str:
    found = _VARIABLE.match(script, at)
    return found[0] if found else "$"


async def _script(container: Container, tokens: list[_Word | str], streams: Streams, variables: dict[str, str]) -> int:
    code, joiner = 0, ";"
    pipeline: list[list[_Word | str]] = [[]]
    for piece in [*tokens, ";"]:
        if piece == "|":
            pipeline.append([])
            continue
        if piece not in _JOINERS:
            pipeline[-1].append(piece)
            continue
        wanted = bool(pipeline[-1]) and not (joiner == "&&" and code) and not (joiner == "||" and not code)
        if wanted:
            words = [word.expand(variables) for word in pipeline[0] if isinstance(word, _Word)]
            if words[:1] == ["exit"]:
                text = words[1] if len(words) > 1 else str(code)
                return int(text) & 0xFF if text.isdigit() else SYNTAX_ERROR
            code = await _pipeline(container, pipeline, streams, variables)
            variables["?"] = str(code)
        elif len(pipeline) > 1:
            raise ScriptError("an empty command in a pipeline")
        if container.stopping.is_set():
            return 143  # 128 + SIGTERM: a shell's default
        pipeline, joiner = [[]], str(piece)
    return code


async def _pipeline(
    container: Container, commands: list[list[_Word | str]], streams: Streams, variables: dict[str, str]
) -> int:
    """Run commands one after the other, each with the whole output of the one before."""
    data: bytes | None = None
    code = 0
    for number, command in enumerate(commands):
        buffer: list[bytes] = []
        last = number == len(commands) - 1
        piped = userland.Streams(
            streams.read if data is None else _reader(data), streams.out if last else _writer(buffer), streams.err
        )
        code = await _simple(container, command, piped, variables)
        data = b"".join(buffer)
    return code


def _reader(data: bytes) -> Callable[[], Awaitable[bytes]]:
    rest = [data]

    async def read() -> bytes:
        await asyncio.sleep(0)
        return rest.pop() if rest else b""

    return read


def _writer(buffer: list[bytes]) -> Callable[[bytes], Awaitable[None]]:
    async def write(data: bytes) -> None:
        await asyncio.sleep(0)
        buffer.append(data)

    return write


async def _simple(container: Container, tokens: list[_Word | str], streams: Streams, variables: dict[str, str]) -> int:
    words: list[str] = []
    read, out, err = streams.read, streams.out, streams.err
    files: list[tuple[str, list[bytes], str]] = []
    rest = list(tokens)
    try:
        while rest:
            piece = rest.pop(0)
            if isinstance(piece, _Word):
                words.append(piece.expand(variables))
            elif piece in ("2>&1", ">&2", "1>&2"):
                out, err = (out, out) if piece == "2>&1" else (err, err)
            else:
                target = rest.pop(0) if rest else None
                if not isinstance(target, _Word):
                    raise ScriptError("a redirection without a file")
                name = target.expand(variables)
                if piece == "<":
                    read = _reader(userland.host_path(container, name).read_bytes())
                    continue
                buffer: list[bytes] = []
                if name != "/dev/null":
                    files.append((name, buffer, piece[-2:]))
                    userland.writable(container, name)
                if piece.startswith("2"):
                    err = _writer(buffer)
                else:
                    out = _writer(buffer)
        if words and words[0] in _UNSUPPORTED:
            raise ScriptError(f"{words[0]!r} is not supported by the lab's shell")
        code = await _run(container, words, userland.Streams(read, out, err)) if words else 0
        for name, buffer, how in files:
            with userland.writable(container, name).open("ab" if how == ">>" else "wb") as file:
                file.write(b"".join(buffer))
    except (OSError, userland.UsageError) as error:
        await streams.err(f"sh: {error}\n".encode())
        return 1
    return code


async def _run(container: Container, words: list[str], streams: Streams) -> int:
    if words[0] == "exec":
        words = words[1:] or ["true"]
    try:
        return await userland.run(container, words, streams)
    except FileNotFoundError:
        await streams.err(f"sh: {words[0]}: not found\n".encode())
        return userland.NOT_FOUND
