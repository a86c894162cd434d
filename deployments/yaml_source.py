"""YAML with the place of every field, so that an error can say where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from deployments.problems import Path, Problem

Place = tuple[int, int]


@dataclass(slots=True)
class Source:
    """A YAML document as plain data, and where each of its fields stands.

    Attributes:
        data: Mappings, lists and scalars.
        places: Line and column, from 1, of each field: of its key in a mapping, of the item in a list.
        problems: What is no YAML, and keys given twice.
    """

    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """Where a field stands, or the nearest one around it that is in the file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return 1, 1

    def problem(self, path: Path, given: str, expected: str, *, warning: bool = False) -> Problem:
        """A problem with the field at `path`."""
        line, column = self.place(path)
        return Problem("warning" if warning else "error", line, column, path, given, expected)


def parse(text: str) -> Source:
    """Read one YAML 1.2 document; a document that is none is a problem, not an exception."""
    source = Source()
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = " ".join(part for part in (error.context, error.problem) if part)
        source.problems.append(Problem("error", line, column, (), what or "unreadable text", "a YAML document"))
        return source
    except YAMLError as error:  # characters YAML does not allow
        source.problems.append(Problem("error", 1, 1, (), " ".join(str(error).split()), "a YAML document"))
        return source
    if root is not None:
        source.data = _Reader(source, yaml.constructor).read(root, (), ())
    return source


class _Reader:
    def __init__(self, source: Source, constructor: SafeConstructor) -> None:
        self._source = source
        self._scalars = constructor

    def read(self, node: Node, path: Path, inside: tuple[int, ...]) -> Any:
        if id(node) in inside:  # an alias to something it is part of
            return self._refuse(node, path, "a value that contains itself", "a tree")
        if isinstance(node, MappingNode):
            return self._mapping(node, path, (*inside, id(node)))
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, at), (*inside, id(node))) for at, item in enumerate(node.value)]
        if not isinstance(node, ScalarNode):
            return self._refuse(node, path, f"a {type(node).__name__}", "a value")
        try:
            return self._scalars.construct_object(node)
        except (YAMLError, ValueError) as error:  # an unknown tag; a timestamp with a 13th month
            what = getattr(error, "problem", None) or error
            return self._refuse(node, path, f"{node.value!r} ({what})", "a plain value")

    def _item(self, node: Node, path: Path, inside: tuple[int, ...]) -> Any:
        self._source.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        return self.read(node, path, inside)

    def _mapping(self, node: MappingNode, path: Path, inside: tuple[int, ...]) -> dict[str, Any] | None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if not isinstance(key, ScalarNode):
                self._refuse(key, path, "a list or mapping as a key", "a name")
                return None
            if name in first and name != "<<":
                given = f"{name!r} for the second time, after line {first[name]}"
                self._refuse(key, (*path, name), given, "each key once")
            first.setdefault(name, key.start_mark.line + 1)
        self._scalars.flatten_mapping(node)  # `<<: *anchor`
        result: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            place = (key.start_mark.line + 1, key.start_mark.column + 1)
            self._source.places[(*path, name)] = place
            result[name] = self.read(value, (*path, name), inside)
        return result

    def _refuse(self, node: Node, path: Path, given: str, expected: str) -> None:
        mark = node.start_mark
        self._source.problems.append(Problem("error", mark.line + 1, mark.column + 1, path, given, expected))
