"""linkerd-proxy, as a container program: the data plane of one pod.

Roots are parsed once at start; the leaf is renewed by `certifier` and only then do the TLS contexts change. Inbound
mTLS on :4143 and admin (plain HTTP and TLS on one port) on :4191, both on the pod's own loopback address.

The admin port is under the default inbound policy, as any other port of the pod. Whoever comes from the pod's own
loopback, as a port-forward does, and the probes of kubelets are always let in, once the policy controller has said so;
until the proxy has its identity it cannot ask that, and goes by its environment alone (linkerd2-proxy: server-policy,
`TryFrom<api::Server>`; inbound, `policy::Store::spawn_discover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from infra.lab.linkerd import httpd
from infra.lab.linkerd.certifier import Authority, CertifyError, RefreshPolicy, certify, check_chain, now_utc
from infra.lab.linkerd.flags import parse_duration
from infra.lab.linkerd.listener import Listener, RefusedError, relay
from infra.lab.linkerd.material import ECHO_PROTOCOL, Key, Material, parse_roots
from infra.lab.linkerd.metrics import proxy_metrics

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from cryptography import x509

    from infra.lab.kubelet.runtime import Container
    from infra.lab.linkerd.tlsstream import Writer

INBOUND_PORT = 4143
ADMIN_PORT = 4191
DRAIN_SECONDS = 0.5
TRUST_ANCHORS = "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"
LOCAL_NAME = "LINKERD2_PROXY_IDENTITY_LOCAL_NAME"
SERVICE_NAME = "LINKERD2_PROXY_IDENTITY_SVC_NAME"
SERVICE_ADDRESS = "LINKERD2_PROXY_IDENTITY_SVC_ADDR"
TOKEN_FILE = "LINKERD2_PROXY_IDENTITY_TOKEN_FILE"  # noqa: S105 - the name of a variable
DIRECTORY = "LINKERD2_PROXY_IDENTITY_DIR"
MIN_REFRESH = "LINKERD2_PROXY_IDENTITY_MIN_REFRESH"
MAX_REFRESH = "LINKERD2_PROXY_IDENTITY_MAX_REFRESH"
INBOUND_PORTS = "LINKERD2_PROXY_INBOUND_PORTS"
INBOUND_POLICY = "LINKERD2_PROXY_INBOUND_DEFAULT_POLICY"
UNAUTHENTICATED = "all-unauthenticated"
OPEN_POLICIES = frozenset({UNAUTHENTICATED, "cluster-unauthenticated", "audit"})
AUTHENTICATED_POLICIES = frozenset({"all-authenticated", "cluster-authenticated"})
POLICIES = OPEN_POLICIES | AUTHENTICATED_POLICIES | {"deny"}
PROBED = ("/live", "/ready")
BAD_CONFIGURATION = 64  # EX_USAGE of sysexits.h


class Proxy:
    """One running proxy. (The prober's `kind` and `serves`: all of Linkerd's proxies are of one kind and are dialled.)

    Args:
        resolve: Turns `host:port` of a cluster service into an address that can be dialled from here.
    """

    kind = "linkerd-proxy"
    serves = True

    def __init__(self, container: Container, resolve: Callable[[str], str]) -> None:
        env = container.env
        self.container = container
        self.name = env[LOCAL_NAME]
        self.roots_pem = env[TRUST_ANCHORS]
        self.roots: list[x509.Certificate] = []
        self.material: Material | None = None
        self._policy = env.get(INBOUND_POLICY) or UNAUTHENTICATED
        self._resolve = resolve
        self._version = container.image.rpartition(":")[2]
        self._refresh = RefreshPolicy(
            parse_duration(env.get(MIN_REFRESH, "10s")), parse_duration(env.get(MAX_REFRESH, "24h0m0s"))
        )
        self._started = time.monotonic()
        self._refreshed_at = 0.0
        self._renewals_ok = 0
        self._renewals_failed = 0

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.container.pod["metadata"]["uid"])

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to end."""
        return self.container.stopping.is_set()

    async def run(self) -> int:
        """From start to exit code."""
        if self._policy not in POLICIES:
            self._log("ERROR", f"Invalid configuration: invalid port policy: {self._policy}")
            return BAD_CONFIGURATION
        try:
            self.roots = parse_roots(self.roots_pem)
            key = Key.generate(self.name)
            scratch = self._write_end_entity(key)
        except ValueError as error:
            self._log("ERROR", f"Could not construct identity: invalid trust anchors: {error}")
            return 1
        inbound = Listener(self.container.ip, INBOUND_PORT, self._choose_inbound, self._serve_inbound)
        admin = Listener(self.container.ip, ADMIN_PORT, self._choose_admin, self._serve_admin)
        renewing = asyncio.create_task(self._renew_forever(key, scratch))
        try:
            inbound.start()
            admin.start()
            await self.container.stopping.wait()
            # Peers may still hold this endpoint for a moment: go on serving, as the real proxy drains.
            await asyncio.sleep(DRAIN_SECONDS)
        except OSError as error:
            self._log("ERROR", f"Could not bind: {error}")
            return 1
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await inbound.stop()
            await admin.stop()
        return 0

    # --- the leaf ---------------------------------------------------------------------------------------------------

    async def _renew_forever(self, key: Key, scratch: Path) -> None:
        while True:
            try:
                await self._renew(key, scratch)
            except CertifyError as error:
                self._renewals_failed += 1
                self._log("WARN", f"daemon:identity: Failed to obtain identity error={error}")
            expiry = None if self.material is None else self.material.leaf.not_valid_after_utc
            await asyncio.sleep(self._refresh.wait(expiry, now_utc()).total_seconds())

    async def _renew(self, key: Key, scratch: Path) -> None:
        try:
            token = self.container.path(self.container.env[TOKEN_FILE]).read_bytes().strip()
        except OSError as error:
            raise CertifyError(f"token cannot be read: {error.strerror}") from error
        chain = await certify(
            self._authority(), name=self.name, token=token, key=key, roots_pem=self.roots_pem, current=self.material
        )
        check_chain(chain, name=self.name, key=key, roots=self.roots, now=now_utc())
        try:
            self.material = Material(self.name, self.roots_pem, key, chain, scratch).load()
        except OSError as error:
            raise CertifyError(f"leaf cannot be used: {error}") from error
        self._renewals_ok += 1
        self._refreshed_at = time.time()
        self._log("INFO", f"daemon:identity: Certified identity id={self.name}")
        self.container.set_ready(True)

    def _authority(self) -> Authority:
        host, _, port = self.container.env[SERVICE_ADDRESS].rpartition(":")
        if host.rstrip(".") == "localhost":
            return Authority(f"{self.container.ip}:{port}", None)
        try:
            return Authority(self._resolve(self.container.env[SERVICE_ADDRESS]), self.container.env[SERVICE_NAME])
        except LookupError as error:
            raise CertifyError(f"cannot resolve {host}: {error}") from error

    def _write_end_entity(self, key: Key) -> Path:
        """The files that the real proxy keeps in its end-entity volume."""
        directory = self.container.path(self.container.env[DIRECTORY])
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "key.p8"
        file.touch(mode=0o600)
        file.write_bytes(key.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
        (directory / "csr.der").write_bytes(key.csr_der)
        return directory

    # --- inbound ----------------------------------------------------------------------------------------------------

    def _choose_inbound(self, is_tls: bool) -> ssl.SSLContext | None:
        if not is_tls:
            return None  # un-meshed clients: passed on as they are
        if self.material is None:
            raise RefusedError
        return self.material.server

    async def _serve_inbound(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        connection: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        if connection is not None and connection.selected_alpn_protocol() == ECHO_PROTOCOL:
            writer.write(await reader.readexactly(1))
            await writer.drain()
            return
        ports = self.container.env.get(INBOUND_PORTS, "")
        if ports:
            await relay(reader, writer, self.container.ip, int(ports.split(",")[0]))

    # --- admin ------------------------------------------------------------------------------------------------------

    def _choose_admin(self, is_tls: bool) -> ssl.SSLContext | None:
        return self._choose_inbound(is_tls)

    async def _serve_admin(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        client = writer.get_extra_info("peername")[0]
        connection: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        authenticated = connection is not None and connection.getpeercert(binary_form=True) is not None

        async def admitted(request: httpd.Request) -> httpd.Response:
            if not self._lets_in(client, authenticated=authenticated, path=request.path):
                return httpd.Response.text("", 403)
            return await self._admin(request)

        await httpd.serve_connection(reader, writer, admitted)

    def _lets_in(self, client: str, *, authenticated: bool, path: str) -> bool:
        if self._policy in OPEN_POLICIES or (authenticated and self._policy in AUTHENTICATED_POLICIES):
            return True
        return self.material is not None and (client == self.container.ip or path in PROBED)

    async def _admin(self, request: httpd.Request) -> httpd.Response:
        if request.path == "/live":
            return httpd.Response.text("live\n")
        if request.path == "/ready":
            ready = self.material is not None
            return httpd.Response.text("ready\n") if ready else httpd.Response.text("not ready\n", 503)
        if request.path == "/metrics":
            return httpd.Response.text("".join(f"{line}\n" for line in self._metrics()))
        if request.path == "/env.json":
            names = request.names() or sorted(n for n in self.container.env if n.startswith("LINKERD2_PROXY_"))
            return httpd.Response.json({name: self.container.env.get(name) for name in names})
        return httpd.NOT_FOUND

    def _metrics(self) -> list[str]:
        lines = [f"process_start_time_seconds {time.time() - (time.monotonic() - self._started):.0f}"]
        expires = 0.0 if self.material is None else self.material.leaf.not_valid_after_utc.timestamp()
        with contextlib.suppress(ValueError):
            lines += proxy_metrics(
                self._version,
                expires=expires,
                refreshed=self._refreshed_at,
                ok=self._renewals_ok,
                failed=self._renewals_failed,
            )
        return lines

    def _log(self, level: str, message: str) -> None:
        elapsed = timedelta(seconds=time.monotonic() - self._started).total_seconds()
        self.container.log(f"[{elapsed:10.3f}s] {level:>5} ThreadId(01) {message}")
