"""Stops a flow process at the step boundaries a test asks for; Python imports it at start from PYTHONPATH.

`$CAPSTAN_TEST_HALTS` is a directory. A line of its file `wanted` is an audit event of ours (`capstan.step` of PEP 578)
as `NAME begin` or `NAME end`. The first process of a flow run that comes there writes its process id to
`reached/SLUG` and stands still (its other threads go on) until `released/SLUG` exists. Nothing of the product is
touched.
"""

import os
import sys
import time
from pathlib import Path


def _listen(directory: Path) -> None:
    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        if event != "capstan.step":
            return
        point = f"{arguments[0]} {arguments[1]}"
        slug = point.replace("/", "_").replace(" ", "_")
        released = directory / "released" / slug
        try:
            wanted = (directory / "wanted").read_text().splitlines()
        except FileNotFoundError:
            return
        if point not in wanted or released.exists():
            return
        partial = directory / "reached" / f".{slug}"
        partial.write_text(str(os.getpid()))
        partial.replace(directory / "reached" / slug)
        while not released.exists():
            time.sleep(0.02)

    sys.addaudithook(on_event)


if os.environ.get("CAPSTAN_TEST_HALTS") and os.environ.get("PREFECT__FLOW_RUN_ID"):
    _listen(Path(os.environ["CAPSTAN_TEST_HALTS"]))
