"""Inventories for tests, from as little text as says what matters."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

from deployments.reading import Reading, read_text

if TYPE_CHECKING:
    from deployments.inventory import Inventory

HEAD = """\
schemaVersion: 1
name: fleet
defaults:
  time_zone: Europe/Berlin
  maintenance_window: {days: [saturday], start: "03:00", end: "07:00"}
"""


def reading(text: str, head: str = HEAD) -> Reading:
    """What is read from an inventory that begins with `head`."""
    return read_text(head + dedent(text))


def inventory(text: str, head: str = HEAD) -> Inventory:
    """An inventory without errors."""
    found = reading(text, head)
    assert found.inventory is not None, found.problems
    return found.inventory


def domains(*names: str, more: str = "") -> str:
    """Domains of these names, each on a cluster of its own."""
    lines = ["domains:"]
    for name in names:
        lines.append(f"  - {{name: {name}, clusters: [{{context: {name}}}]{more}}}")
    return "\n".join(lines) + "\n"
