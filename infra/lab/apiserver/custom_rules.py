"""Rules of custom resources beyond their schema: CEL (``x-kubernetes-validations``) and what an update may leave wrong.

Sources: Kubernetes docs, "Validation rules" and "Validation ratcheting"; apiextensions-apiserver v1.36. Expressions are
evaluated by cel-python, loaded when the first rule is met; without that library no rule is judged, and the log says so.
"""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import go_json
from .status import Cause, duplicate_value, forbidden_field, required

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

RULES = "x-kubernetes-validations"
_SKIPPED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)
# What keeps rules from being looked at: the object is not of the shape they are written for.
_BLOCKING = {
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
}
_OLD_SELF = re.compile(r"\boldSelf\b")
# Words of the expression language, which a field of that name is escaped for.
_RESERVED = frozenset(
    {"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"}
    | {"import", "let", "loop", "package", "namespace", "return", "var", "void", "while"}
)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class _UnknownFunctionError(Exception):
    """A rule calls what is not played here."""


def judge(obj: Any, schema: Mapping[str, Any], old: Any, causes: list[Cause]) -> tuple[list[Cause], list[str]]:
    """What the rules of a schema say about an object which the schema itself has complained about in `causes`.

    Returns further causes, and warnings: of faults that were there before in a part that has not changed.
    """
    if not _has_rules(schema):
        return [], []
    if any(cause.reason in _BLOCKING for cause in causes):
        return [Cause("FieldValueInvalid", f"Invalid value: null: {_SKIPPED}", "<nil>")], []
    found: list[Cause] = []
    warnings: list[str] = []
    for cause, unchanged in _visit(obj, schema, old, "", same=False, root=True):
        if unchanged:
            warnings.append(str(cause))
        else:
            found.append(cause)
    return found, warnings


def ratcheted(causes: list[Cause], obj: Any, old: Any) -> list[Cause]:
    """Without the faults of parts an update leaves as they were."""
    return [cause for cause in causes if not _unchanged(cause, obj, old)]


def _unchanged(cause: Cause, obj: Any, old: Any) -> bool:
    steps = [int(index) if index else name for name, index in _STEP.findall(cause.field)]
    if cause.reason == "FieldValueRequired":
        steps = steps[:-1]
    for step in steps:
        if isinstance(obj, dict) and isinstance(old, dict) and step in obj and step in old:
            obj, old = obj[step], old[step]
        elif isinstance(obj, list) and isinstance(old, list) and isinstance(step, int) and step < len(obj):
            obj, old = obj[step], old[step] if step < len(old) else None
        else:
            return False
        if obj == old:
            return True
    return False


def _has_rules(schema: Any) -> bool:
    if isinstance(schema, dict):
        return bool(schema.get(RULES)) or any(_has_rules(part) for part in schema.values())
    return isinstance(schema, list) and any(_has_rules(part) for part in schema)


def _visit(
    value: Any, schema: Mapping[str, Any], old: Any, path: str, *, same: bool, root: bool = False
) -> Iterator[tuple[Cause, bool]]:
    """Complaints of the rules at a value and below it, and whether that part is as it was."""
    if value is None:
        return
    same = same or (old is not None and value == old and not root)
    for rule in schema.get(RULES) or []:
        cause = _complaint(rule, value, schema, old, path, root)
        if cause is not None:
            yield cause, same and not _OLD_SELF.search(rule.get("rule") or "")
    for part in schema.get("allOf") or []:
        yield from _visit(value, part, old, path, same=same)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
        for name, entry in value.items():
            part = properties.get(name) or (extra if isinstance(extra, dict) else None)
            if part:
                here = f"{path}[{name}]" if name not in properties else f"{path}.{name}" if path else name
                yield from _visit(entry, part, before.get(name), here, same=same)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, entry in enumerate(value):
            yield from _visit(entry, schema["items"], _partner(entry, schema, old), f"{path}[{index}]", same=same)


def _partner(item: Any, schema: Mapping[str, Any], old: Any) -> Any:
    """The element an element of a list was before: only lists that are maps tell."""
    keys = schema.get("x-kubernetes-list-map-keys") or []
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list) or not isinstance(item, dict):
        return None
    same = (o for o in old if isinstance(o, dict) and all(o.get(key) == item.get(key) for key in keys))
    return next(same, None)


def _complaint(
    rule: Mapping[str, Any], value: Any, schema: Mapping[str, Any], old: Any, path: str, root: bool
) -> Cause | None:
    text = (rule.get("rule") or "").strip()
    optional = bool(rule.get("optionalOldSelf"))
    if not text or optional or (_OLD_SELF.search(text) and old is None):
        return None
    shown = "" if schema.get("type") in ("object", "array") else f"{go_json.field_value(value)}: "
    at = f"{path}{rule['fieldPath']}".lstrip(".") if rule.get("fieldPath") else path
    try:
        if _evaluate(text, value, schema, old, root) is not False:
            return None
    except _UnknownFunctionError as error:
        log.warning("the rule %r is not judged: %s", text, error)
        return None
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        kind = go_json.quote(str(schema.get("type") or ""))
        return Cause("FieldValueInvalid", f"Invalid value: {kind}: {error} evaluating rule: {text}", at or "<nil>")
    message = (rule.get("message") or "").strip() or f"failed rule: {text}"
    if rule.get("messageExpression"):
        message = _message(rule["messageExpression"], value, schema, old, root) or message
    at = at or "<nil>"
    match rule.get("reason"):
        case "FieldValueForbidden":
            return forbidden_field(at, message)
        case "FieldValueRequired":
            return required(at, message)
        case "FieldValueDuplicate":
            return duplicate_value(at, shown.removesuffix(": "))
    return Cause("FieldValueInvalid", f"Invalid value: {shown}{message}", at)


def _message(expression: str, value: Any, schema: Mapping[str, Any], old: Any, root: bool) -> str:
    try:
        text = _evaluate(expression, value, schema, old, root)
    except (_UnknownFunctionError, ValueError, TypeError, KeyError, ArithmeticError):
        return ""
    return text.strip() if isinstance(text, str) and "\n" not in text.strip() else ""


def _evaluate(text: str, value: Any, schema: Mapping[str, Any], old: Any, root: bool) -> Any:
    """The result as a plain value; True when nothing can be evaluated here. Raises ValueError as CEL would say it."""
    cel = _library()
    if cel is None:
        return True
    variables = {"self": _as_cel(cel, value, schema, root)}
    if old is not None:
        variables["oldSelf"] = _as_cel(cel, old, schema, root)
    try:
        result = _program(text).evaluate(variables)
    except cel.CELParseError as error:
        raise _UnknownFunctionError(f"it cannot be read: {error}") from None
    except cel.CELEvalError as error:
        words = str(error.args[0]) if error.args else str(error)
        if words.startswith("undeclared reference"):
            raise _UnknownFunctionError(words[:80]) from None
        missing = re.match(r"no such member in mapping: '(.*)'", words)
        raise ValueError(f"no such key: {missing[1]}" if missing else words.splitlines()[0]) from None
    if isinstance(result, cel.celtypes.BoolType):
        return bool(result)
    return str(result) if isinstance(result, str) else result


@cache
def _library() -> Any:
    try:
        return importlib.import_module("celpy")
    except ImportError:
        log.warning("cel-python is not installed: validation rules of custom resources are not judged")
        return None


@cache
def _environment() -> Any:
    return _library().Environment()


@cache
def _program(text: str) -> Any:
    environment = _environment()
    return environment.program(environment.compile(text), functions=_functions())


@cache
def _functions() -> Mapping[str, Callable[..., Any]]:
    """Of the libraries Kubernetes adds: those of strings and lists that rules use most."""
    types = _library().celtypes
    text, number, flag, array = types.StringType, types.IntType, types.BoolType, types.ListType
    return {
        "lowerAscii": lambda s: text(s.lower()),
        "upperAscii": lambda s: text(s.upper()),
        "trim": lambda s: text(s.strip()),
        "split": lambda s, by: array([text(part) for part in s.split(by)]),
        "join": lambda items, by="": text(by.join(items)),
        "replace": lambda s, old, new: text(s.replace(old, new)),
        "substring": lambda s, start, end=None: text(s[start:end]),
        "indexOf": lambda s, part: number(
            s.find(part) if isinstance(s, str) else next((i for i, item in enumerate(s) if item == part), -1)
        ),
        "isSorted": lambda items: flag(all(a <= b for a, b in pairwise(items))),
        "sum": lambda items: sum(items[1:], items[0]) if items else number(0),
        "min": min,
        "max": max,
        "find": lambda s, pattern: text(m[0] if (m := re.search(pattern, s)) else ""),
        "findAll": lambda s, pattern: array([text(m[0]) for m in re.finditer(pattern, s)]),
    }


def _as_cel(cel: Any, value: Any, schema: Mapping[str, Any], root: bool = False) -> Any:
    """A value in the types of the language, as its schema has them."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties") or {}, schema.get("additionalProperties")
        out = {}
        for name, entry in value.items():
            if root and name == "metadata":
                # of an object's metadata rules see the name alone
                entry = {key: entry[key] for key in ("name", "generateName") if key in entry}
            part = properties.get(name) or (extra if isinstance(extra, dict) else {})
            key = _escaped(name) if name in properties else name
            out[cel.celtypes.StringType(key)] = _as_cel(cel, entry, part)
        return cel.celtypes.MapType(out)
    if isinstance(value, list):
        return cel.celtypes.ListType([_as_cel(cel, item, schema.get("items") or {}) for item in value])
    if isinstance(value, str) and schema.get("format") in ("date-time", "date"):
        return cel.celtypes.TimestampType(value)
    if isinstance(value, str) and schema.get("format") == "duration":
        return cel.celtypes.DurationType(value)
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return cel.celtypes.DoubleType(value)
    return cel.json_to_cel(value)


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    out = name.replace("__", "__underscores__")
    return out.replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
