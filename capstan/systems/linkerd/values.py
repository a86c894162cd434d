"""Changing one value inside a YAML text, and nothing else of it.

`linkerd-config` and the CLI's overrides are YAML inside a string that people and tools diff. So the scalar is replaced
where it stands; the result is parsed again and compared, and only where that fails is the whole text written anew.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence


def get_value(text: str, path: Sequence[str], where: str) -> str | None:
    """The string at `path`; None if the path does not exist or holds no string.

    Raises:
        InvalidInput: The text is no YAML mapping.
    """
    value: Any = _parse(text, where)
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value if isinstance(value, str) else None


def set_value(text: str, path: Sequence[str], value: str, where: str) -> str:
    """The text with the string at `path`, which must exist, replaced by `value`.

    Raises:
        InvalidInput: The text is no YAML mapping, or has no such path.
    """
    wanted = _parse(text, where)
    holder: Any = wanted
    for key in path[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or path[-1] not in holder:
        raise InvalidInput("no such value", where=where, expected=".".join(path))
    holder[path[-1]] = value
    edited = _replace(text, path, value)
    if edited is not None:
        try:
            if YAML(typ="safe").load(edited) == wanted:
                return edited
        except YAMLError:
            pass  # the text is laid out in a way that cannot be edited in place
    return _rewrite(text, path, value)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        # the library's message quotes the text, which may hold a key
        raise InvalidInput("not YAML", where=where, observed=type(error).__name__, expected="Helm values") from None
    if not isinstance(value, dict):
        raise InvalidInput("no YAML mapping", where=where, observed=type(value).__name__, expected="Helm values")
    return value


def _replace(text: str, path: Sequence[str], value: str) -> str | None:
    found = _find(YAML(typ="rt").compose(text), path)
    if found is None:
        return None
    key, scalar = found
    start, end = scalar.start_mark.index, scalar.end_mark.index
    indent = " " * (key.start_mark.column + 2)
    if "\n" in value:
        chomp = "|" if value.endswith("\n") else "|-"
        lines = value.removesuffix("\n").split("\n")
        block = chomp + "\n" + "\n".join(indent + line if line else "" for line in lines)
    else:
        block = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    # A block scalar reaches up to the next token; what follows its last line of text is not part of it.
    tail = text[start:end]
    return text[:start] + block + tail[len(tail.rstrip()) :] + text[end:]


def _find(node: Node | None, path: Sequence[str]) -> tuple[Node, ScalarNode] | None:
    if not isinstance(node, MappingNode):
        return None
    for key, value in node.value:
        if isinstance(key, ScalarNode) and key.value == path[0]:
            if len(path) > 1:
                return _find(value, path[1:])
            return (key, value) if isinstance(value, ScalarNode) else None
    return None


def _rewrite(text: str, path: Sequence[str], value: str) -> str:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 1 << 20
    document = yaml.load(text)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
