"""The canary bites in a real Prefect home: what a flow leaks by each of Prefect's ways is found there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.canary.scanner import scan

if TYPE_CHECKING:
    from pathlib import Path

# A flow that leaks a key of its own in each of these ways: parameter, log line, results, artifact, exception's text.
PROGRAM = """
import contextlib
from prefect import flow, task, get_run_logger
from prefect.artifacts import create_markdown_artifact

def read(name):
    return open(f"KEYS/{name}").read()

@flow
def child(key):
    return 1

@task
def failing():
    raise ValueError(read("error"))

@flow
def main():
    child(read("parameter"))
    get_run_logger().warning("made %s", read("log line"))
    reading = task(read, persist_result=True)  # cached by its input, so each result is a file of its own
    reading("result")
    reading.with_options(result_serializer="compressed/pickle")("compressed result")
    create_markdown_artifact(read("artifact"), key="leak")
    with contextlib.suppress(ValueError):
        failing()
    read("nothing")

main()
"""
LEAKS = ("parameter", "log line", "result", "compressed result", "artifact", "error")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_a_flow_leaks_in_each_of_prefects_ways_is_found_in_its_home(tmp_path: Path) -> None:
    keys = {way: ec.generate_private_key(ec.SECP256R1()) for way in (*LEAKS, "nothing")}
    (tmp_path / "keys").mkdir()
    for way, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "keys" / way).write_bytes(pem)
    settings = {
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | settings
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("KEYS", str(tmp_path / "keys"))],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        way
        for way, key in keys.items()
        if any(finding.what.startswith("known key") for finding in scan([tmp_path / "home"], [key]))
    }
    assert found == set(LEAKS)
