"""Tables as ``kubectl get`` asks for them: column definitions and a row of cells per object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import go_json, status
from .objects import convert, partial
from .store import Stored, dumps

if TYPE_CHECKING:
    from collections.abc import Callable

    from .kinds import KindInfo
    from .request import Query

Cell = str | int | bool | None


@dataclass(frozen=True)
class Column:
    """`priority` 1 columns are shown by ``-o wide`` only."""

    name: str
    cell: Callable[[dict[str, Any], datetime], Cell]
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


def render(
    items: list[Stored], kind: KindInfo, metadata: dict[str, Any], query: Query, now: datetime, definitions: bool = True
) -> bytes:
    """A meta.k8s.io Table. ``includeObject`` chooses what rows carry: Metadata (default), Object or None.

    `definitions` False leaves the column definitions out, as all but the first event of a watch do.
    """
    from .columns import columns_of

    columns = columns_of(kind)
    metadata = {name: value for name, value in metadata.items() if value != ""}
    return dumps(
        {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": [column.definition() for column in columns] if definitions else None,
            "rows": [row(stored, kind, columns, query, now) for stored in items],
        }
    )


def check_options(query: Query) -> None:
    """400 for an ``includeObject`` there is not."""
    include = query.get("includeObject")
    if include not in ("", "None", "Metadata", "Object"):
        rule = "must be 'Metadata', 'Object', 'None', or empty"
        text = f"includeObject: Invalid value: {go_json.quote(include)}: {rule}"
        raise status.bad_request(f"Unable to convert to Table as requested: {text}")


def row(stored: Stored, kind: KindInfo, columns: list[Column], query: Query, now: datetime) -> dict[str, Any]:
    obj = convert(stored.obj, kind)
    include = query.get("includeObject", "Metadata")
    shown = {"None": None, "Object": obj}.get(include, partial(obj))
    return {"cells": [column.cell(obj, now) for column in columns], "object": shown}


def human_duration(seconds: float) -> str:
    """Ages as kubectl and the server print them: 45s, 2m3s, 15m, 3h4m, 2d5h, 400d, 3y20d."""
    total = int(seconds)
    if total < 0:
        return "0s" if total > -2 else "<invalid>"
    if total < 60 * 2:
        return f"{total}s"
    minutes = total // 60
    if minutes < 10:
        return f"{minutes}m{total % 60}s" if total % 60 else f"{minutes}m"
    if minutes < 60 * 3:
        return f"{minutes}m"
    hours = total // 3600
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    years = days // 365
    if years < 8 and days % 365:
        return f"{years}y{days % 365}d"
    return f"{years}y"


def since(moment: str | None, now: datetime, absent: str = "<unknown>") -> str:
    """Age of a timestamp as the server prints it."""
    if not moment:
        return absent
    text = moment.replace("Z", "+00:00")
    return human_duration((now - datetime.fromisoformat(text).astimezone(UTC)).total_seconds())
