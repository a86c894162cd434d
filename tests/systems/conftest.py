"""A lab with Linkerd, as a process of its own, and the adapter on it."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import httpx
import pytest

from capstan.cluster.client import Cluster
from capstan.systems.linkerd import Linkerd

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 90


class LinkerdLab:
    """A running lab and its judge."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.log = (directory / "log").open("w")
        command = [sys.executable, "-m", "infra.lab", "up", "--system", "linkerd", "--dir", str(directory), *arguments]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log)
        until = time.monotonic() + START_SECONDS
        while not (directory / "lab.json").exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"the lab did not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        self.facts = json.loads((directory / "lab.json").read_text())

    def judged(self) -> dict:
        """What the prober counted: attempted, failed, and every failure."""
        with urllib.request.urlopen(self.facts["prober"]) as answer:
            return json.load(answer)

    def connect(self, **options) -> Cluster:
        return Cluster.connect(kubeconfig=self.facts["kubeconfig"], name="lab", **options)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = LinkerdLab(tmp_path_factory.mktemp("lab"), "--size", "small", "--probes-per-second", "25")
    yield lab
    lab.stop()


@pytest.fixture
def cluster(lab):
    cluster = lab.connect()
    yield cluster
    cluster.close()


@pytest.fixture
def linkerd(cluster):
    return Linkerd(cluster)


@pytest.fixture
def lab_faults(lab):
    """Adds fault rules to the lab's API server; all are gone after the test."""
    configuration = lab.connect().configuration
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    with httpx.Client(base_url=lab.facts["server"], verify=context) as admin:

        def add(**rule) -> None:
            admin.post("/lab/faults", json=rule).raise_for_status()

        yield add
        admin.delete("/lab/faults").raise_for_status()
