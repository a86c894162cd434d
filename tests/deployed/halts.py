"""The test's side of `halting/sitecustomize.py`: say where flow processes are to stand still, and let them go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Halts:
    """A directory shared with the flow processes of one deployment.

    Args:
        directory: Made if absent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("reached", "released"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a flow process needs to have in its environment."""
        path = [str(Path(__file__).with_name("halting")), os.environ.get("PYTHONPATH", "")]
        return {"CAPSTAN_TEST_HALTS": str(self.directory), "PYTHONPATH": os.pathsep.join(filter(None, path))}

    def want(self, points: Iterable[str]) -> None:
        """Forget everything, and stop at these points from now on: `STEP begin` or `STEP end`, each once."""
        for name in ("reached", "released"):
            for file in (self.directory / name).iterdir():
                file.unlink()
        (self.directory / "wanted").write_text("".join(f"{point}\n" for point in points))

    def reached(self, point: str) -> int | None:
        """Process id of whoever stands still there; None if nobody does."""
        file = self.directory / "reached" / _slug(point)
        if not file.exists() or (self.directory / "released" / _slug(point)).exists():
            return None
        return int(file.read_text())

    def release(self, point: str) -> None:
        """Let whoever stands there go on, or never stop anybody there."""
        (self.directory / "released" / _slug(point)).touch()


def _slug(point: str) -> str:
    return point.replace("/", "_").replace(" ", "_")
