"""What the README and the docs point to is there: files, headings, commands and their options."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import pytest

from capstan.cli import app
from tests.support.proofs import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A command of ours with whatever follows it on its line, up to what ends a command or a piece of code.
_COMMAND = re.compile(r"(?:^|[\s`(/])capstan ((?:[a-z][-a-z]*)[^`#|;&\n]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][-a-z]*")


def named(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@functools.cache
def _of(words: tuple[str, ...]) -> frozenset[str]:
    """All options of a command; of a group, those of everything in it."""
    found = functools.reduce(lambda group, word: group[word], words, app)
    if found.default_command is None:
        return frozenset().union(*(_of((*words, name)) for name in found if not name.startswith("-")))
    return frozenset(name for argument in found.assemble_argument_collection() for name in argument.names) | {"--help"}


def options(command: str) -> frozenset[str] | None:
    """All options of a command line's command; None where there is none of this name."""
    found = app
    words: tuple[str, ...] = ()
    for word in command.split():
        if not re.fullmatch(r"[a-z][-a-z]*", word) or word not in found:
            break
        found, words = found[word], (*words, word)
    return _of(words) if words else None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    unknown = []
    for command in _COMMAND.findall(page.read_text()):
        known = options(command)
        # Prose may say "capstan is ..."; what has options is a command line.
        given = set(_OPTION.findall(command))
        if given and (known is None or given - known):
            unknown.append(f"capstan {command.strip()}: {', '.join(sorted(given - (known or frozenset())))}")
    assert unknown == []


def test_a_dead_option_is_found() -> None:
    assert "--what" in (options("rotate --what issuer") or ())
    assert "--whatever" not in (options("rotate") or ())
    assert options("frobnicate --x") is None
    assert "--public-key" in (options("evidence verify FILE") or ())
