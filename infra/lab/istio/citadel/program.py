"""Citadel as a container program (`docker.io/istio/citadel:VERSION`), versions 1.3 and 1.4.

Its gRPC and SDS interfaces are not served: workloads of that age mount the Secrets that it writes.
"""

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from infra.lab.client import ApiError
from infra.lab.istio.citadel.workloads import Options, Workloads, dns_names
from infra.lab.istio.golog import Log
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod.authority import Authority
from infra.lab.istio.istiod.bundle import BundleError
from infra.lab.istio.istiod.plugin import StartError
from infra.lab.istio.istiod.rotator import Rotator
from infra.lab.istio.istiod.selfsigned import Scopes, SelfSigned
from infra.lab.istio.istiod.settings import Settings
from infra.lab.istio.istiod.versions import flag
from infra.lab.linkerd import httpd
from infra.lab.linkerd.flags import parse_duration, parse_flags

if TYPE_CHECKING:
    from infra.lab.istio.istiod.bundle import Bundle
    from infra.lab.kubelet.runtime import Container

MIN_GRACE_ENV = "CITADEL_WORKLOAD_CERT_MIN_GRACE_PERIOD"
RESYNC_ENV = "LAB_RESYNC_SECONDS"
"""Citadel's own 60 s resync of all Secrets, in seconds of the lab."""
CONFIG_MAP, CONFIG_KEY = "istio-security", "caTLSRootCert"
FAILED = 255
_METRICS = ("authentication_failure", "csr", "csr_parsing_err", "id_extraction_err", "success_cert_issuance")


async def program(container: Container) -> int:
    """Run Citadel until it is killed (SIGTERM does not end it); exit code 255 if it cannot start."""
    return await Citadel(container).run()


class Citadel:
    """One running Citadel."""

    def __init__(self, container: Container) -> None:
        flags = parse_flags(container.args)
        self._container = container
        self._flags = flags
        self._out = Log(container.log, _now)
        self._client = container.client(user_agent="istio_ca")
        storage = flags.get("citadel-storage-namespace", "istio-system")
        listened = flags.get("listened-namespaces") or flags.get("listened-namespace") or ""
        self._settings = replace(
            Settings.of(container),
            namespace=storage,
            trust_domain=flags.get("trust-domain") or "cluster.local",
        )
        self._options = Options(
            trust_domain=self._settings.trust_domain,
            storage=storage,
            leaf_ttl=parse_duration(flags.get("workload-cert-ttl", "2160h")),
            namespaces=frozenset(filter(None, listened.split(","))),
            by_default=flag(container.env, "CITADEL_ENABLE_NAMESPACES_BY_DEFAULT", default=True),
            resync=timedelta(seconds=float(container.env.get(RESYNC_ENV) or 60)),
            grace=float(flags.get("workload-cert-grace-period-ratio", "0.5")),
            min_grace=parse_duration(container.env.get(MIN_GRACE_ENV) or "10m"),
            dns_names=dns_names(storage, flags.get("custom-dns-names", ""))
            if flag({"v": flags.get("append-dns-names", "true")}, "v", default=True)
            else {},
        )
        self._self_signed: SelfSigned | None = None
        self._root_end: datetime | None = None

    async def run(self) -> int:
        """The process from start to exit code."""
        out, ip = self._out, self._container.ip
        out.info("ControlZ available at 127.0.0.1:9876")
        try:
            bundle = await self._create()
            authority = Authority(self._settings, bundle, out, _now)
        except (StartError, BundleError) as error:
            out.error(str(error))
            return FAILED
        self._root_end = authority.root_expiry
        await self._publish_at_start(bundle)
        workloads = Workloads(self._options, authority, self._self_signed, self._client, out, _now)
        tasks = []
        if self._self_signed is not None and self._settings.check_interval > timedelta():
            tasks.append(asyncio.create_task(self._follow(authority, self._self_signed)))
        await asyncio.sleep(0)  # the rotator's lines come next there
        out.info("Creating Kubernetes controller to write issued keys and certs into secret ...")
        tasks.append(asyncio.create_task(workloads.run()))
        own = f"k8s.{self._settings.trust_domain}"
        out.info(f'adding registry entry "{own}" -> "{own}"')
        out.info("added client certificate authenticator")
        try:
            admin = await httpd.start(ip, int(self._flags.get("monitoring-port", "15014")), self._monitor)
        except OSError as error:
            out.error(f"unable to setup monitoring: {error}", "monitor")
            return FAILED
        out.info("Citadel monitor has started.")
        out.info("Citadel has started")
        out.info("Monitor server started.", "monitor")
        self._container.set_ready(True)
        try:
            await asyncio.Event().wait()  # SIGTERM is not handled: only SIGKILL ends it (recorded)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await admin.stop()
        return 0

    async def _create(self) -> Bundle:
        out = self._out
        if flag({"v": self._flags.get("self-signed-ca", "false")}, "v", default=False):
            out.info("Use self-signed certificate as the CA certificate")
            roots = self._flags.get("root-cert", "")
            self._self_signed = SelfSigned(
                self._settings,
                self._client,
                out,
                _now,
                lambda: self._read(roots) if roots else b"",
                Scopes(start=self._start_scope, rotator="rootCertRotator", controller="caSecretController"),
            )
            try:
                return await self._self_signed.start()
            except StartError as error:
                reason = str(error).removeprefix("failed to create a self-signed istiod CA: ")
                raise StartError(f"Failed to create a self-signed Citadel (error: {reason})") from error
        out.info("Use certificate from argument as the CA certificate")
        names = ("signing-cert", "signing-key", "cert-chain", "root-cert")
        cert, key, chain, root = (self._read(self._flags.get(name, "")) for name in names)
        problem = "certificate is not authorized to sign other certificates"
        try:
            bundle = bundles.verified(cert, key, chain, root, b"", rules=self._settings.rules, now=_now())
        except BundleError as error:
            problem = f"failed to create CA KeyCertBundle ({error})"
        else:
            if bundles.is_authority(bundle.signer):
                return bundle
        raise StartError(f"Failed to create an Citadel (error: {problem})")

    def _read(self, path: str) -> bytes:
        try:
            return self._container.path(path).read_bytes()
        except OSError as error:
            raise BundleError(f"open {path}: no such file or directory") from error

    @property
    def _start_scope(self) -> str:
        return "" if self._settings.rules.version < (1, 4, 0) else "pkiCaLog"

    async def _publish_at_start(self, bundle: Bundle) -> None:
        """Tell istio-security; of a plug-in CA that has a chain, the chain."""
        self_signed = self._self_signed is not None
        text = bundle.root_pem if self_signed else bundle.chain_pem or bundle.root_pem
        try:
            await self._publish(text)
        except ApiError as error:
            why = (
                f"Failed to write Citadel cert to configmap ({error.message}). Node agents will not be able to connect."
            )
            self._out.error(why, self._start_scope)
            return
        if self_signed:
            where = f"configmap {CONFIG_MAP} in namespace {self._settings.namespace}"
            self._out.info(f"The Citadel's public key is successfully written into {where}.", self._start_scope)

    async def _publish(self, text: bytes) -> None:
        """ConfigMap istio-security: PEM in base64, inside plain text. Raises ApiError."""
        namespace = self._settings.namespace
        collection = f"/api/v1/namespaces/{namespace}/configmaps"
        data = {CONFIG_KEY: base64.b64encode(text).decode()}
        try:
            known = await self._client.get(f"{collection}/{CONFIG_MAP}")
        except ApiError as error:
            if error.status != 404:
                raise
            metadata = {"name": CONFIG_MAP, "namespace": namespace}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            await self._client.create(collection, body)
        else:
            merged = {**(known.get("data") or {}), **data}
            if merged != known.get("data"):
                await self._client.replace(f"{collection}/{CONFIG_MAP}", {**known, "data": merged})

    async def _follow(self, authority: Authority, source: SelfSigned) -> None:
        """The rotator; what it takes over, istio-security tells. It alone hears of SIGTERM."""
        out, scope = self._out, source.scopes.rotator

        async def updated() -> None:
            try:
                await self._publish(authority.bundle.root_pem)
            except ApiError as error:
                text = f"Failed to write self-signed Citadel's root cert to configmap ({error.message})."
                out.error(f"{text} Citadel agents will not be able to connect.", scope)
            else:
                out.info("Root certificate is updated into configmap.", scope)

        rotator = asyncio.create_task(Rotator(source, authority, out, _now, random.Random(), updated).run())
        try:
            await self._container.stopping.wait()
            if not self._settings.jitter:  # while it waits for its first look it hears nothing
                out.info("Received stop signal, so stop the root cert rotator.", scope)
                rotator.cancel()
            await rotator
        finally:
            rotator.cancel()
            await asyncio.gather(rotator, return_exceptions=True)

    async def _monitor(self, request: httpd.Request) -> httpd.Response:
        if request.path == "/metrics":
            lines = [f"citadel_server_{name}_count 0" for name in _METRICS]
            if self._root_end is not None:
                end = self._root_end.timestamp()
                lines.append(f"citadel_server_citadel_root_cert_expiry_timestamp {end:.0f}")
            return httpd.Response.text("".join(f"{line}\n" for line in sorted(lines)))
        if request.path == "/version":
            return httpd.Response.text(f"{self._settings.tag}-lab-Clean")
        return httpd.NOT_FOUND


def _now() -> datetime:
    return datetime.now(UTC)
