"""The columns each kind shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .table import Column, since

if TYPE_CHECKING:
    from datetime import datetime

    from .kinds import KindInfo


def _name(obj: dict[str, Any], _now: datetime) -> str:
    name: str = obj["metadata"]["name"]
    return name


def _age(obj: dict[str, Any], now: datetime) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now)


NAME = Column(
    "Name",
    _name,
    format="name",
    description="Name must be unique within a namespace and cannot be updated.",
)
AGE = Column("Age", _age, description="Time since creationTimestamp, the server time when this object was created.")


def columns_of(kind: KindInfo) -> list[Column]:
    return [NAME, AGE]
