"""Reading an inventory file: everything that is wrong with it, at once, each with its line."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from capstan.errors import InvalidInput
from deployments.inventory import Inventory
from deployments.judging import judged
from deployments.problems import Path, Problem
from deployments.yaml_source import Source, parse


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds.

    Attributes:
        inventory: None where an error stands in its way.
        problems: Errors and warnings, in the order of the file.
    """

    inventory: Inventory | None
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What has to be changed before it can be deployed."""
        return tuple(problem for problem in self.problems if problem.level == "error")


def read(file: FilePath) -> Reading:
    """Read and judge an inventory.

    Raises:
        InvalidInput: The file cannot be opened, or is no text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "the inventory cannot be read",
            where=str(file),
            observed=getattr(error, "strerror", None) or str(error),
            expected="a YAML file in UTF-8",
            next_command="capstan inventory schema; deployments/example.yaml is one to start from",
        ) from error
    return read_text(text)


def read_text(text: str) -> Reading:
    """Read and judge the text of an inventory."""
    source = parse(text)
    problems = list(source.problems)
    inventory: Inventory | None = None
    if source.data is None and not problems:
        problems.append(source.problem((), "nothing", "an inventory: schemaVersion, domains"))
    elif not any(problem.path == () for problem in problems):
        try:
            inventory = Inventory.model_validate(source.data)
        except ValidationError as invalid:
            known = {problem.path for problem in problems}
            details = _without_echoes(invalid.errors())
            problems += [found for found in (_problem(source, detail) for detail in details) if found.path not in known]
    if inventory is not None:
        problems += judged(inventory, source)
    problems.sort(key=lambda problem: (problem.line, problem.column, problem.path != (), problem.field))
    broken = any(problem.level == "error" for problem in problems)
    return Reading(None if broken else inventory, tuple(dict.fromkeys(problems)))


def load(file: FilePath) -> Inventory:
    """The inventory, if nothing is wrong with it.

    Raises:
        InvalidInput: Names the first error, and how many there are.
    """
    reading = read(file)
    if reading.inventory is not None:
        return reading.inventory
    first, *others = reading.errors
    raise InvalidInput(
        "the inventory has an error" if not others else f"the inventory has {len(reading.errors)} errors",
        where=f"{file}:{first.line}:{first.column}",
        observed=f"{first.field}: {first.given}" if first.field else first.given,
        expected=first.expected,
        next_command=f"capstan inventory validate {file}",
    )


def _without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without "too short" of a list whose items are at fault: Pydantic counts only those it could read."""
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(other["loc"][: len(detail["loc"])] == detail["loc"] for other in details if other is not detail)
    ]


def _problem(source: Source, detail: ErrorDetails) -> Problem:
    path = _in_file(source, detail["loc"])
    kind = detail["type"]
    if kind == "missing":
        return source.problem(path, "nothing", "a value: this field is required")
    if kind == "extra_forbidden":
        known = _fields(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        expected = f"{near[0]}, perhaps" if near else f"one of {', '.join(known)}"
        return source.problem(path, "a field that does not exist", expected)
    if kind == "too_short":
        return source.problem(path, _shown(detail.get("input")), "at least one")
    if kind in ("model_type", "dict_type"):
        fields = _fields(path)
        expected = f"a mapping of fields: {', '.join(fields)}" if fields else "a mapping of names to values"
        return source.problem(path, _shown(detail.get("input")), expected)
    if kind in ("list_type", "tuple_type"):
        return source.problem(path, _shown(detail.get("input")), "a list")
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    # Validators say "X is no Y"; what is expected is a Y.
    _, says_no, wanted = message.partition(" is no ")
    given = "a secret" if path[-1:] == ("url",) else _shown(detail.get("input"))
    return source.problem(path, given, f"a {wanted}" if says_no else message)


def _in_file(source: Source, loc: tuple[int | str, ...]) -> Path:
    """Pydantic's location without the parts that only Pydantic knows (branches of a union, validators)."""
    path: Path = ()
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (*path, part) in source.places or (last and _is_field(path, part)):
            path = (*path, part)
    return path


def _is_field(path: Path, part: int | str) -> bool:
    return isinstance(part, str) and part in _fields(path)


def _fields(path: Path) -> list[str]:
    """The names that may stand in the mapping at `path`, as the file writes them."""
    model: Any = Inventory
    for part in path:
        if isinstance(part, int):
            continue
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        model = _model_of(field.annotation) if field else None
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
