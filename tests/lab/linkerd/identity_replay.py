"""Replays the recorded traces of the real linkerd-identity against the lab's, on the lab's API server.

Certificates are minted anew in the shape the trace describes; the script's actions are done again; what the process
logs, writes as Events and answers is brought into the trace's own normal form and compared with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from infra.lab import pki
from infra.lab.apiserver import ApiServer
from infra.lab.client import ApiError, KubeClient
from infra.lab.kubelet.runtime import SERVICE_ACCOUNT_DIRECTORY, Container
from infra.lab.linkerd import identity, manifests, wire
from infra.lab.objects import create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACES = Path(__file__).parents[2] / "vectors/controllers/linkerd-identity"
WEB = "web.emoji.serviceaccount.identity.linkerd.cluster.local"
JSON = dict[str, Any]
PATIENCE = 60.0
"""Seconds until what does not come is a failure; on a loaded machine a start alone takes many."""
_attempts = itertools.count()


def load(name: str) -> JSON:
    trace: JSON = json.loads((TRACES / f"{name}.json").read_text())
    return trace


# --- material -------------------------------------------------------------------------------------------------------


def mint(trace: JSON, now: datetime, lifetimes: dict[str, float] | None = None) -> dict[str, pki.KeyPair]:
    """The trace's roots and issuers, by label; `lifetimes` overrides the end of some, in seconds from now."""
    described = {c["label"]: c for c in trace["certs"].values() if c.get("label", "leaf") != "leaf"}
    keys = {label: ec.generate_private_key(ec.SECP256R1()) for label in described}
    by_ski = {c["ski"]: label for label, c in described.items()}
    made: dict[str, pki.KeyPair] = {}
    for label, wanted in sorted(described.items(), key=lambda item: not item[1]["self_signed"]):
        parent = label if wanted["self_signed"] else by_ski.get(wanted["aki"], "")
        if parent not in keys:  # the trace does not show the root of an issuer that nobody knows
            keys[parent] = ec.generate_private_key(ec.SECP256R1())
        parent_name = made[parent].certificate.subject if parent in made else _name(wanted["subject"][0])
        if not wanted["self_signed"] and parent not in made:
            parent_name = _name("commonName=root-2.linkerd.cluster.local (UTF8String)")
        end = (lifetimes or {}).get(label, float(wanted["not_after_offset"].rstrip("s")))
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(wanted["subject"][0]))
            .issuer_name(_name(wanted["subject"][0]) if wanted["self_signed"] else parent_name)
            .public_key(keys[label].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=float(wanted["not_before_offset"].rstrip("s"))))
            .not_valid_after(now + timedelta(seconds=end))
            .add_extension(x509.BasicConstraints(True, wanted["basic_constraints"]["path_length"]), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[label].public_key()), critical=False)
        )
        if not wanted["self_signed"]:
            aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[parent].public_key())
            builder = builder.add_extension(aki, critical=False)
        made[label] = pki.KeyPair(builder.sign(keys[parent], hashes.SHA256()), keys[label])
    return made


_CA_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text.split("=", 1)[1].split(" (")[0])])


def rsa_issuer(root: pki.KeyPair, now: datetime) -> tuple[str, str]:
    """An issuer with an RSA key, as (certificate PEM, key PEM)."""
    key = rsa.generate_private_key(65537, 2048)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name("commonName=identity.linkerd.cluster.local"))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .sign(root.key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return pki.to_pem(certificate), pem.decode()


def no_ca(root: pki.KeyPair, now: datetime) -> pki.KeyPair:
    """A certificate under the root that may not sign."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("commonName=identity.linkerd.cluster.local"))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(8)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
    )
    return pki.KeyPair(builder.sign(root.key, hashes.SHA256()), key)


def csr(*, common_name: str | None = WEB, sans: tuple[str, ...] = (WEB,), key: Any = None) -> bytes:
    """A request in DER; a name with `://` becomes a URI."""
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in sans
    ]
    subject = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(subject))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.DER)


# --- the running thing ----------------------------------------------------------------------------------------------


class Volume:
    """A directory that is written as the kubelet writes volumes: whole, by a swap of `..data`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = itertools.count()
        path.mkdir(parents=True)

    def swap(self, files: dict[str, str]) -> None:
        target = self.path / f"..{next(self._count)}"
        target.mkdir()
        for name, text in files.items():
            (target / name).write_text(text)
        link = self.path / "..data_tmp"
        link.symlink_to(target.name)
        link.replace(self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")

    def write_in_place(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.path / "..data" / name).write_text(text)


@dataclass
class Replay:
    """One identity process on one API server, and everything it did."""

    api: ApiServer
    client: KubeClient
    directory: Path
    version: str = "dev-undefined"
    lines: list[str] = field(default_factory=list)
    events: list[JSON] = field(default_factory=list)
    answers: list[tuple[str, str, wire.CertifyResponse | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.issuer = Volume(self.directory / "issuer")
        self.roots = Volume(self.directory / "roots")
        self.ip = f"127.251.{random.randint(1, 254)}.{random.randint(2, 254)}"
        self.container: Container | None = None
        self.identity: identity.Identity | None = None
        self._process: asyncio.Task[int] | None = None

    def give_issuer(self, certificate: str, key: str) -> None:
        self.issuer.swap({"tls.crt": certificate, "tls.key": key})

    def give_pair(self, pair: pki.KeyPair) -> None:
        self.give_issuer(pair.certificate_pem, pair.key_pem)

    def give_roots(self, *roots: pki.KeyPair, suffix: str = "") -> None:
        self.roots.swap({"ca-bundle.crt": "".join(root.certificate_pem for root in roots) + suffix})

    def start(
        self,
        annotations: dict[str, str] | None = None,
        *,
        lifetime: str = "24h0m0s",
        skew: str = "20s",
        scheme: str = "kubernetes.io/tls",
    ) -> None:
        metadata = {"name": "linkerd-identity-0", "namespace": "linkerd", "uid": "u", "annotations": annotations or {}}
        args = [
            "identity",
            "-controller-namespace=linkerd",
            "-identity-trust-domain=cluster.local",
            f"-identity-issuance-lifetime={lifetime}",
            f"-identity-clock-skew-allowance={skew}",
            f"-identity-scheme={scheme}",
        ]
        self.container = Container(
            pod={"metadata": metadata},
            name="identity",
            image=f"cr.l5d.io/linkerd/controller:{self.version}",
            root=self.directory / "layer",
            args=args,
            ip=self.ip,
            api=self.api.url,
            mounts={
                identity.ISSUER_MOUNT: self.issuer.path,
                str(Path(identity.ROOTS_FILE).parent): self.roots.path,
                SERVICE_ACCOUNT_DIRECTORY: self.directory / "account",
            },
        )
        self.identity = identity.Identity(self.container)
        self._process = asyncio.create_task(self.identity.run())

    async def wait_ready(self) -> None:
        assert self.container is not None
        while not self.container.ready:
            assert self._process is not None
            if self._process.done():
                raise AssertionError(f"it ended: {self.log()}")
            await asyncio.sleep(0.005)

    def log(self) -> list[str]:
        """What the process has logged since its start."""
        assert self.container is not None
        return log_lines(self.container)

    async def wait_lines(self, count: int) -> None:
        """Until the process has logged `count` lines."""
        async with asyncio.timeout(PATIENCE):
            while len(self.log()) < count:
                await asyncio.sleep(0.005)

    async def swap_and_wait(self, certificate: str, key: str) -> None:
        before = len(self.log())
        self.give_issuer(certificate, key)
        await self.wait_lines(before + 1)

    async def exit_code(self, *, terminate: bool = False) -> int:
        assert self.container is not None
        assert self._process is not None
        if terminate:
            self.container.stopping.set()
        code = await asyncio.wait_for(self._process, PATIENCE)
        self.lines += self.log()
        await self.container.close()
        return code

    async def get(self, path: str) -> tuple[int, str]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://{self.ip}:9990{path}")
            return answer.status_code, answer.text

    async def certify(
        self, *, name: str = WEB, token: str | None = None, request: bytes | None = None
    ) -> tuple[str, str, wire.CertifyResponse | None]:
        """One call: (code, details, answer)."""
        data = wire.CertifyRequest(
            name,
            (await self.token("emoji", "web", "identity.l5d.io") if token is None else token).encode(),
            csr() if request is None else request,
        ).encode()
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"{self.ip}:8080", options=options) as channel:
            try:
                raw = await channel.unary_unary(wire.CERTIFY)(data, timeout=5)
                answer = ("OK", "", wire.CertifyResponse.decode(raw))
            except grpc.aio.AioRpcError as error:
                answer = (error.code().name, error.details() or "", None)
        self.answers.append(answer)
        return answer

    async def token(self, namespace: str, account: str, audience: str | None) -> str:
        spec: JSON = {"expirationSeconds": 3600} | ({"audiences": [audience]} if audience else {})
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str((await self.client.create(path, body))["status"]["token"])

    async def settle_events(self, count: int) -> None:
        """Until `count` writes of Events have been seen."""
        async with asyncio.timeout(PATIENCE):
            while len(self.events) < count:
                await asyncio.sleep(0.005)


def log_lines(container: Container) -> list[str]:
    return [line.text for line in container.logs.lines()]


@contextlib.asynccontextmanager
async def replay(directory: Path, version: str = "dev-undefined") -> AsyncIterator[Replay]:
    """An API server with the service accounts and permissions identity needs."""
    api = ApiServer(directory / "api")
    await api.start()
    client = KubeClient.from_kubeconfig(api.kubeconfig)
    run = Replay(api, client, directory, version)
    watching = None
    try:
        for namespace in ("linkerd", "emoji"):
            await create(client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        accounts = [("emoji", "web")]
        for namespace, name in accounts:
            metadata = {"name": name, "namespace": namespace}
            await create(client, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        for item in manifests.rbac(manifests.Options()):
            await create(client, item)
        account = directory / "account"
        account.mkdir()
        (account / "ca.crt").write_text(api.ca_pem)
        (account / "token").write_text(await run.token("linkerd", "linkerd-identity", None))
        watching = asyncio.create_task(_follow_events(client, run.events))
        yield run
    finally:
        if run.container is not None:
            run.container.stopping.set()
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await client.close()
        await api.stop()


async def _follow_events(client: KubeClient, seen: list[JSON]) -> None:
    version = (await client.list("/api/v1/events"))["metadata"]["resourceVersion"]
    with contextlib.suppress(ApiError):
        async for event in client.watch("/api/v1/events", resourceVersion=version):
            seen.append(event)


# --- normal form ----------------------------------------------------------------------------------------------------

_NORMAL = [
    (re.compile(r"<rfc3339:[^>]*>"), "T"),
    (re.compile(r"<gotime:[^>]*>"), "G"),
    (re.compile(r"<sha256-der:[^>]*>"), "H"),
    (re.compile(r" on <ip:port>"), " on A"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "T"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC( m=\+[\d.]+)?"), "G"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "H"),
    (re.compile(r" on \S*:\d+(?=\")"), " on A"),
    (re.compile(r"&\{N:\+\d+ "), "&{N "),
]


def normal(text: str) -> str:
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return text


def recorded_lines(trace: JSON) -> list[str]:
    return [normal(e["line"]) for e in trace["events"] if e["source"] == "log"]


def event_writes(events: list[JSON]) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """Writes of Events by involved object, in order; objects are numbered in order of appearance."""
    numbers: dict[str, int] = {}
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for event in events:
        item = event["object"]
        number = numbers.setdefault(item["metadata"]["uid"], len(numbers))
        about = (item["involvedObject"]["kind"], item["involvedObject"]["name"])
        entry = (event["type"], item["type"], item["reason"], item["count"], normal(item["message"]))
        found.setdefault(about, []).append((*entry, number))
    for about, writes in found.items():
        order = list(dict.fromkeys(number for *_, number in writes))
        found[about] = [(*entry, order.index(number)) for *entry, number in writes]
    return found


def recorded_events(trace: JSON) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    return event_writes([e for e in trace["events"] if e["source"] == "kube-event"])


def recorded_answers(trace: JSON) -> list[tuple[str, str]]:
    return [(e["code"], normal(e.get("details", ""))) for e in trace["events"] if e["source"] == "grpc"]


def describe(der: bytes) -> JSON:
    """A leaf in the words of the trace's `certs`."""
    certificate = x509.load_der_x509_certificate(der)
    names = {
        "2.5.29.15": "keyUsage",
        "2.5.29.37": "extendedKeyUsage",
        "2.5.29.35": "authorityKeyIdentifier",
        "2.5.29.17": "subjectAltName",
    }
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return {
        "serial": certificate.serial_number,
        "subject": [f"commonName={a.value} ({a._type.name})" for a in certificate.subject],
        "lifetime_s": int(life.total_seconds()),
        "extension_order": [names[e.oid.dotted_string] for e in extensions],
        "key_usage_critical": usage.critical,
        "usages": [n for n in ("digital_signature", "key_encipherment", "key_cert_sign") if getattr(usage.value, n)],
        "extended": [oid._name for oid in extended.value],
        "san": [f"DNSName:{name}" for name in san.value.get_values_for_type(x509.DNSName)],
        "san_critical": san.critical,
        "sig_alg": certificate.signature_algorithm_oid._name,
    }


def recorded_leaf(wanted: JSON) -> JSON:
    return {
        "serial": wanted["serial"],
        "subject": wanted["subject"],
        "lifetime_s": wanted["lifetime_s"],
        "extension_order": wanted["extension_order"],
        "key_usage_critical": wanted["key_usage"]["critical"],
        "usages": wanted["key_usage"]["usages"],
        "extended": wanted["ext_key_usage"]["usages"],
        "san": wanted["san"]["names"],
        "san_critical": wanted["san"]["critical"],
        "sig_alg": wanted["sig_alg"],
    }
