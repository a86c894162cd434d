"""linkerd-identity: the mesh's certificate authority, as a container program.

It reads its roots once at start and the issuer at start and after every swap of `..data` in the issuer's mount; an
issuer that does not chain to the roots in memory is skipped and the old one stays. Behaviour, order and wording are
those of the golden traces in tests/vectors/controllers/linkerd-identity.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from infra.lab.client import ApiError, KubeClient
from infra.lab.linkerd import gopem, httpd, inotify, requests, tokens, versions, wire
from infra.lab.linkerd.events import Recorder, Reference
from infra.lab.linkerd.flags import parse_duration, parse_flags
from infra.lab.linkerd.gotext import go_time, log_line
from infra.lab.linkerd.issuer import Issuer, IssuerError, Validity, load_verified
from infra.lab.linkerd.metrics import GrpcMetrics
from infra.lab.linkerd.requests import RefusedError

if TYPE_CHECKING:
    from cryptography import x509

    from infra.lab.kubelet.runtime import Container

COMPONENT = "linkerd-identity"
ISSUER_MOUNT = "/var/run/linkerd/identity/issuer"
ROOTS_FILE = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt"
# On the pod, it reproduces the watcher that dies without a word (linkerd2 issue 15109): no more reloads. "true", or the
# name of a node: only there.
DEAD_WATCHER_ANNOTATION = "lab.capstan.dev/identity-watcher-dead"
# On the pod: "NODE=SECONDS", by how much the clock of a node is ahead, for identity there; "*" is any node.
CLOCK_ANNOTATION = "lab.capstan.dev/identity-clock"
# Where no flag says otherwise (linkerd2, pkg/identity and pkg/tls).
DEFAULT_LIFETIME, DEFAULT_SKEW = timedelta(hours=24), timedelta(seconds=10)

_GO_CODE_NAMES = {
    grpc.StatusCode.OK: "OK",
    grpc.StatusCode.INVALID_ARGUMENT: "InvalidArgument",
    grpc.StatusCode.FAILED_PRECONDITION: "FailedPrecondition",
    grpc.StatusCode.INTERNAL: "Internal",
    grpc.StatusCode.UNKNOWN: "Unknown",
    grpc.StatusCode.UNAVAILABLE: "Unavailable",
}


async def program(container: Container) -> int:
    """Run linkerd-identity until SIGTERM; exit code 1 if it cannot start."""
    return await Identity(container).run()


class Identity:
    """One running linkerd-identity.

    Attributes:
        clock_ahead: By how much its clock is ahead of the true time.
    """

    def __init__(self, container: Container) -> None:
        flags = parse_flags(container.args)
        self._flags = flags
        self._container = container
        self._version = container.image.rpartition(":")[2]
        self._namespace = flags.get("controller-namespace", "linkerd")
        self._scheme = flags.get("identity-scheme", "")
        self._trust_domain = flags.get("identity-trust-domain", "")
        self._port = int(flags.get("addr", ":8080").rpartition(":")[2])
        self._admin_port = int(flags.get("admin-addr", ":9990").rpartition(":")[2])
        self._validity = Validity(DEFAULT_LIFETIME, DEFAULT_SKEW)
        self._roots: list[x509.Certificate] = []
        self._issuer: Issuer | None = None
        self._metrics = GrpcMetrics()
        self._ready = False
        self.clock_ahead = clock_ahead(container)
        self._client: KubeClient | None = None
        self._recorder: Recorder | None = None

    @property
    def _issuer_name(self) -> str:
        return f"identity.{self._namespace}.{self._trust_domain}"

    @property
    def _deployment(self) -> Reference:
        return Reference("Deployment", "apps/v1", self._namespace, COMPONENT)

    async def run(self) -> int:
        """The process from start to exit code."""
        self._log("info", f"running version {self._version}")
        try:
            pem = self._container.path(ROOTS_FILE).read_bytes()
        except FileNotFoundError:
            self._log(
                "fatal", f"could not read identity trust anchors PEM: open {ROOTS_FILE}: no such file or directory"
            )
            self._log("info", f"starting admin server on :{self._admin_port}")
            return 1
        self._log("info", f"starting admin server on :{self._admin_port}")
        if not self._scheme or not self._trust_domain:
            self._log("info", "Identity disabled in control plane configuration.")
            return 0
        try:
            self._roots = gopem.trust_anchors(pem)
        except gopem.PemError as error:
            self._log("fatal", f"Failed to read trust anchors: {error}")
            return 1
        self._validity = self._read_validity()
        try:
            watch = inotify.Watch(self._container.path(ISSUER_MOUNT))
        except OSError as error:
            self._log("fatal", f"Failed to start creds watcher: {(error.strerror or '').lower()}")
            return 1
        with contextlib.closing(watch):
            return await self._start(watch)

    async def _start(self, watch: inotify.Watch) -> int:
        self._log("info", "Using k8s client with QPS=100.00 Burst=200")
        self._client = self._container.client(user_agent=f"identity/{self._version}")
        self._recorder = Recorder(self._client, COMPONENT)
        if problem := await self._initialize(self._client):
            self._log("fatal", f"Failed to initialize identity service: {problem}")
            return 1
        return await self._serve(self._recorder, watch)

    async def _initialize(self, client: KubeClient) -> str | None:
        """May it review tokens, and can it sign? Why not, or None."""
        try:
            if problem := await tokens.check_access(client):
                return problem
            self._issuer = self._load()
        except ApiError as error:
            return error.message
        except IssuerError as error:
            return str(error)
        self._note_issuer()
        return None

    def _read_validity(self) -> Validity:
        """The two durations of the flags; one that is none is warned of, and its default stands."""
        skew = self._duration("identity-clock-skew-allowance", "clock skew allowance", DEFAULT_SKEW)
        return Validity(self._duration("identity-issuance-lifetime", "issuance lifetime", DEFAULT_LIFETIME), skew)

    def _duration(self, flag: str, what: str, default: timedelta) -> timedelta:
        text = self._flags.get(flag, "")
        try:
            return parse_duration(text) if text else default
        except ValueError as error:
            self._log("warning", f"Invalid {what}: {error}")
            return default

    async def _serve(self, recorder: Recorder, watch: inotify.Watch) -> int:
        self._log("info", f"starting gRPC server on :{self._port}")
        admin = await httpd.start(self._container.ip, self._admin_port, self._admin)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self._grpc_handler(),))
        if server.add_insecure_port(f"{self._container.ip}:{self._port}") == 0:
            text = f"Failed to listen on :{self._port}: listen tcp :{self._port}: bind: address already in use"
            self._log("fatal", text)
            await admin.stop()
            return 1
        await server.start()
        tasks = [asyncio.create_task(recorder.run()), asyncio.create_task(self._follow(watch))]
        self._ready = True
        self._container.set_ready(True)
        try:
            await self._container.stopping.wait()
            self._log("info", f"shutting down gRPC server on :{self._port}")
            self._log("error", "failed to start identity admin server: http: Server closed")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.stop(grace=0.2)
            await admin.stop()
        return 0

    # --- the issuer -------------------------------------------------------------------------------------------------

    async def _follow(self, watch: inotify.Watch) -> None:
        """Follow swaps of `..data`, each by itself; writing the files in place is not noticed, and a dead watcher
        notices nothing.
        """
        dead = _annotation(self._container, DEAD_WATCHER_ANNOTATION)
        if dead and dead in ("true", self._container.node):
            return
        async with contextlib.aclosing(watch.names()) as names:
            async for name in names:
                if name == "..data":
                    self._reload()

    def _reload(self) -> None:
        try:
            self._issuer = self._load()
        except IssuerError as error:
            message = f"Skipping issuer update as certs could not be read from disk: {error}"
            self._log("warning", message)
            self._event(self._deployment, "Warning", "IssuerUpdateSkipped", message)
            return
        self._note_issuer()
        self._log("info", "Updated identity issuer")
        self._event(self._deployment, "Normal", "IssuerUpdated", "Updated identity issuer")

    def _load(self) -> Issuer:
        directory = self._container.path(ISSUER_MOUNT)
        return load_verified(
            directory, self._scheme, ISSUER_MOUNT, roots=self._roots, name=self._issuer_name, now=self._now()
        )

    def _note_issuer(self) -> None:
        if self._issuer is not None and self._version_shows_issuer():
            end, now = int(self._issuer.certificate.not_valid_after_utc.timestamp()), int(self._now().timestamp())
            fields = {"invalid_after": str(end), "process_clock_time": str(now), "ttl_seconds": str(end - now)}
            self._container.log(log_line(self._now(), "info", "Issuer cert loaded", **fields))

    # --- Certify ----------------------------------------------------------------------------------------------------

    def _grpc_handler(self) -> grpc.GenericRpcHandler:
        handler = grpc.unary_unary_rpc_method_handler(self._certify)  # no serialisers: raw bytes in and out
        return grpc.method_handlers_generic_handler(wire.SERVICE, {"Certify": handler})

    async def _certify(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            request = wire.CertifyRequest.decode(data)
        except wire.WireError:  # before anything counts it
            text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"
            await context.abort(grpc.StatusCode.INTERNAL, text)
            raise
        self._metrics.started()
        begin = time.monotonic()
        try:
            answer = await self.certify(request)
        except RefusedError as error:
            self._metrics.handled(_GO_CODE_NAMES[error.code], time.monotonic() - begin)
            await context.abort(error.code, error.details)
            raise
        self._metrics.handled("OK", time.monotonic() - begin)
        return answer.encode()

    async def certify(self, request: wire.CertifyRequest) -> wire.CertifyResponse:
        """Check a request and sign its leaf; raises RefusedError with the code and text of trace 08."""
        # (1) An issuer is loaded and the request is whole.
        if self._issuer is None:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "cert issuer not ready yet")
        csr = requests.parse(request)
        # (2) The issuer in memory still verifies.
        issuer, now = self._issuer, self._now()
        try:
            issuer.verify(self._roots, now)
        except IssuerError as error:
            message = f"{error} - CSR Identity : {request.identity}"
            self._log("error", f"could not process CSR because of CA cert validation failure: {message}")
            self._event(self._deployment, "Warning", "IssuerValidationFailed", message)
            raise RefusedError(grpc.StatusCode.UNKNOWN, str(error)) from error
        # (3) The CSR asks for exactly the requested identity.
        requests.check(csr, request.identity)
        # (4) The token is that of the requested identity.
        found = await self._token_identity(request)
        if found != request.identity:
            text = f"requested identity did not match provided token: requested={request.identity}; found={found}"
            self._log_refusal(text)
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, text)
        # (5) Sign.
        try:
            leaf = issuer.issue(csr, self._validity, now)
        except IssuerError as error:
            raise RefusedError(grpc.StatusCode.INTERNAL, str(error)) from error
        der = leaf.public_bytes(Encoding.DER)
        self._announce(request.identity, leaf.not_valid_after_utc, der)
        intermediates = tuple(certificate.public_bytes(Encoding.DER) for certificate in issuer.chain)
        return wire.CertifyResponse(der, intermediates, leaf.not_valid_after_utc)

    async def _token_identity(self, request: wire.CertifyRequest) -> str:
        if self._client is None:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "cert issuer not ready yet")
        suffix = f"identity.{self._namespace}.{self._trust_domain}"
        try:
            return await tokens.identity_of(self._client, request.token, suffix)
        except tokens.InvalidTokenError as error:
            self._log_refusal(f"invalid token provided for {request.identity}: {error}")
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except tokens.NotAuthenticatedError as error:
            self._log("info", f"authentication failed for {request.identity}: {error}")
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
        except ApiError as error:
            text = f"error validating token for {request.identity}: {error.message}"
            self._log("error", text)
            raise RefusedError(grpc.StatusCode.INTERNAL, text) from error

    def _announce(self, identity: str, until: datetime, der: bytes) -> None:
        message = f"issued certificate for {identity} until {go_time(until)}: {hashlib.sha256(der).hexdigest()}"
        self._log("info", message)
        account, namespace, *_ = identity.split(".")
        self._event(Reference("ServiceAccount", "v1", namespace, account), "Normal", "IssuedLeafCertificate", message)

    # --- what others see --------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        """By this replica's clock."""
        return datetime.now(UTC) + self.clock_ahead

    async def _admin(self, request: httpd.Request) -> httpd.Response:
        answer = self._answer(request)
        return replace(answer, headers=(*answer.headers, ("date", format_datetime(self._now(), usegmt=True))))

    def _answer(self, request: httpd.Request) -> httpd.Response:
        if request.path == "/ping":
            return httpd.Response.text("pong\n")
        if request.path == "/ready":
            return httpd.Response.text("ok\n") if self._ready else httpd.Response.text("not ready\n", 500)
        if request.path == "/metrics":
            return httpd.Response.text("".join(f"{line}\n" for line in self._metric_lines()))
        return httpd.Response.text("404 page not found\n", 404)

    def _metric_lines(self) -> list[str]:
        lines = self._metrics.render()
        if self._issuer is not None and self._version_shows_issuer():
            left = self._issuer.certificate.not_valid_after_utc - self._now()  # below zero once it has ended
            lines.append(f"issuer_cert_ttl_seconds {left.total_seconds():.3f}")
        return lines

    def _version_shows_issuer(self) -> bool:
        return versions.shows_issuer(self._version)

    def _log_refusal(self, message: str) -> None:
        if versions.logs_refusals(self._version):
            self._log("info", message)

    def _event(self, about: Reference, kind: str, reason: str, message: str) -> None:
        if self._recorder is not None:
            self._recorder.record(about, kind, reason, message)

    def _log(self, level: str, message: str) -> None:
        self._container.log(log_line(self._now(), level, message))


def clock_ahead(container: Container) -> timedelta:
    """By how much the clock is ahead where this container runs."""
    node, _, seconds = _annotation(container, CLOCK_ANNOTATION).partition("=")
    return timedelta(seconds=float(seconds)) if node and node in ("*", container.node) else timedelta()


def _annotation(container: Container, name: str) -> str:
    return str((container.pod["metadata"].get("annotations") or {}).get(name, ""))
