"""Runs the lab's istiod on the lab's API server as the recorded script ran the real one, and compares.

Certificates are made anew in the shape the trace describes; what the process logs, writes and answers is brought into
the trace's own normal form, with every certificate and key named by its place in order of appearance.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import random
import re
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from infra.lab.apiserver import ApiServer
from infra.lab.client import ApiError, KubeClient
from infra.lab.istio import wire
from infra.lab.istio.istiod.program import program
from infra.lab.kubelet.runtime import SERVICE_ACCOUNT_DIRECTORY, Container
from infra.lab.objects import create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TRACES = Path(__file__).parents[2] / "vectors/controllers/istiod"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1"
JSON = dict[str, Any]
PATIENCE = 60.0
"""Seconds until what does not come is a failure; on a loaded machine a start alone takes many."""
CA_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def load(name: str) -> JSON:
    trace: JSON = json.loads((TRACES / f"{name}.json").read_text())
    return trace


# --- material -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A CA of a test: texts as they go into files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        form = serialization.PrivateFormat.TraditionalOpenSSL
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def name(organization: str, common: str = "") -> x509.Name:
    """UTF8String, as OpenSSL writes names."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization, _ASN1Type.UTF8String)]
    if common:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common, _ASN1Type.UTF8String))
    return x509.Name(attributes)


def root(organization: str, common: str = "Root CA", *, key: Any = None, days: float = 3650) -> Authority:
    """A self-signed root."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return _authority(name(organization, common), None, key, days, path_length=None)


def intermediate(parent: Authority, organization: str = "cluster1", *, days: float = 730, ca: bool = True) -> Authority:
    """A CA under `parent`; `days` may be negative, `ca` false."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _authority(name(organization, "Intermediate CA"), parent, key, days, path_length=0 if ca else None, ca=ca)


def _authority(
    subject: x509.Name, parent: Authority | None, key: Any, days: float, *, path_length: int | None, ca: bool = True
) -> Authority:
    now = datetime.now(UTC).replace(microsecond=0)
    begin = now - timedelta(minutes=1) if days > 0 else now - timedelta(days=2)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if parent is not None:
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key())
        builder = builder.add_extension(aki, critical=False)
    return Authority(builder.sign(parent.key if parent else key, hashes.SHA256()), key)


def cacerts(signer: Authority, chain: str, roots: str, **others: str | None) -> dict[str, str]:
    """The four files; a keyword (with `_` for `-` and `.`) replaces one, None leaves it out."""
    files = {
        "ca-cert.pem": signer.pem,
        "ca-key.pem": signer.key_pem,
        "cert-chain.pem": chain,
        "root-cert.pem": roots,
    }
    for key, value in others.items():
        place = next(file for file in files if file.replace("-", "_").replace(".", "_") == key)
        if value is None:
            del files[place]
        else:
            files[place] = value
    return files


# --- the running thing ----------------------------------------------------------------------------------------------


class Volume:
    """A directory written as the kubelet writes volumes: whole, by a swap of `..data`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.roots: list[str] = []
        self._count = itertools.count()
        path.mkdir(parents=True, exist_ok=True)

    def swap(self, files: dict[str, str]) -> None:
        target = self.path / f"..{next(self._count)}"
        target.mkdir()
        for file, text in files.items():
            (target / file).write_text(text)
        self.roots += [text for file, text in files.items() if file in ("root-cert.pem", "ca.crt")]
        for link in self.path.iterdir():
            if link.is_symlink() and link.name != "..data" and link.name not in files:
                link.unlink()
        link = self.path / "..data_tmp"
        link.symlink_to(target.name)
        link.replace(self.path / "..data")
        for file in files:
            if not (self.path / file).is_symlink():
                (self.path / file).symlink_to(f"..data/{file}")


@dataclass(frozen=True)
class Answer:
    """What one CreateCertificate came to."""

    code: str
    details: str
    chain: tuple[str, ...] = ()

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain[0].encode())

    @property
    def signed_by(self) -> bytes:
        """The authority key identifier of the leaf."""
        aki = self.leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        return aki.key_identifier or b""


def identifier(authority: Authority | x509.Certificate) -> bytes:
    """The subject key identifier."""
    certificate = authority.certificate if isinstance(authority, Authority) else authority
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


@dataclass
class Istiod:
    """One istiod after another on one API server and one volume, and everything they did."""

    api: ApiServer
    client: KubeClient
    directory: Path
    version: str
    pod: str = "istiod"
    lines: list[str] = field(default_factory=list)
    changes: list[JSON] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.volume = Volume(self.directory / "cacerts")
        self.running: asyncio.Task[int] | None = None
        self.ip = f"127.252.{random.randint(1, 254)}.{random.randint(2, 254)}"
        self.container: Container | None = None
        self._count = itertools.count()

    def start(self, *, annotations: dict[str, str] | None = None, env: dict[str, str] | None = None) -> None:
        number = next(self._count)
        self.container = Container(
            pod={
                "metadata": {
                    "name": f"{self.pod}-{number}",
                    "namespace": "istio-system",
                    "uid": "u",
                    "annotations": annotations or {},
                }
            },
            name="discovery",
            image=f"docker.io/istio/pilot:{self.version}",
            root=self.directory / f"{self.pod}-layer-{number}",
            env={"REVISION": "default", "POD_NAMESPACE": "istio-system", **(env or {})},
            ip=self.ip,
            api=self.api.url,
            mounts={
                "/etc/cacerts": self.volume.path,
                SERVICE_ACCOUNT_DIRECTORY: self.directory / "account",
            },
        )
        self.running = asyncio.create_task(program(self.container))

    async def ready(self) -> None:
        assert self.container is not None
        assert self.running is not None
        async with asyncio.timeout(PATIENCE):
            while not self.container.ready:
                if self.running.done():
                    raise AssertionError(f"it ended: {self.log()}")
                await asyncio.sleep(0.005)

    def log(self) -> list[str]:
        """What the running process has logged; a log keeps the lines of one entry apart, here they are one again."""
        assert self.container is not None
        entries: list[str] = []
        for line in self.container.logs.lines():
            if _ENTRY.match(line.text) or not entries:
                entries.append(line.text)
            else:
                entries[-1] += f"\n{line.text}"
        return entries

    async def logged(self, text: str, count: int = 1) -> None:
        """Until `count` lines with `text` have been logged by this process."""
        async with asyncio.timeout(PATIENCE):
            while sum(text in line for line in self.log()) < count:
                await asyncio.sleep(0.005)

    async def swap(self, files: dict[str, str], last_line: str) -> list[str]:
        """Swap the volume; the lines up to the one with `last_line`."""
        before = len(self.log())
        self.volume.swap(files)
        async with asyncio.timeout(PATIENCE):
            while not any(last_line in line for line in self.log()[before:]):
                await asyncio.sleep(0.005)
        return [normal(line) for line in self.log()[before:]]

    async def exit(self, *, terminate: bool = True) -> int:
        assert self.container is not None
        assert self.running is not None
        if terminate:
            self.container.stopping.set()
        code = await asyncio.wait_for(self.running, PATIENCE)
        self.lines += self.log()
        await self.container.close()
        return code

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.01)

    # --- what it offers ---------------------------------------------------------------------------------------------

    async def create_certificate(
        self,
        *,
        token: str | None = None,
        seconds: int = 86400,
        identity: str = "spiffe://cluster.local/ns/app/sa/web",
        key: Any = None,
        metadata: dict[str, str] | None = None,
        port: int = 15012,
        client: tuple[bytes, bytes] | None = None,
        request: str | None = None,
    ) -> Answer:
        """One call as an agent makes it; `request` is a CSR of one's own."""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(names, critical=False)
            .sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        text = csr.public_bytes(serialization.Encoding.PEM).decode() if request is None else request
        data = wire.CertificateRequest(text, seconds, metadata or {}).encode()
        bearer = await self.token() if token is None else token
        metadata_sent = (("authorization", f"Bearer {bearer}"),) if bearer else ()
        async with self.channel(port, client) as channel:
            try:
                raw = await channel.unary_unary(wire.CREATE_CERTIFICATE)(data, timeout=5, metadata=metadata_sent)
            except grpc.aio.AioRpcError as error:
                return Answer(error.code().name, error.details() or "")
        return Answer("OK", "", wire.CertificateResponse.decode(raw).cert_chain)

    def channel(self, port: int = 15012, client: tuple[bytes, bytes] | None = None) -> grpc.aio.Channel:
        """A channel that trusts every root this test has ever put somewhere; `client` is (key, chain) to show."""
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        if port != 15012:
            return grpc.aio.insecure_channel(f"{self.ip}:{port}", options=options)
        made = [c["object"]["data"]["ca-cert.pem"] for c in self.changes if c["object"].get("kind") == "Secret"]
        texts = [*self.volume.roots, *(base64.b64decode(text).decode() for text in made)]
        options.append(("grpc.ssl_target_name_override", "istiod.istio-system.svc"))
        credentials = grpc.ssl_channel_credentials("".join(texts).encode(), *(client or (None, None)))
        return grpc.aio.secure_channel(f"{self.ip}:{port}", credentials, options=options)

    async def presented(self, port: int = 15012) -> list[x509.Certificate]:
        """The chain in the handshake."""
        return await asyncio.to_thread(_presented, self.ip, port)

    async def get(self, path: str, port: int = 15014) -> tuple[int, str]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://{self.ip}:{port}{path}")
            return answer.status_code, answer.text

    async def metrics(self) -> dict[str, float]:
        text = (await self.get("/metrics"))[1]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines())}

    async def token(self, audience: str = "istio-ca", account: str = "web", namespace: str = "app") -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        spec = {"expirationSeconds": 3600, "audiences": [audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str((await self.client.create(path, body))["status"]["token"])

    # --- what it writes ---------------------------------------------------------------------------------------------

    async def secret(self) -> dict[str, str]:
        """istio-ca-secret, decoded."""
        item = await self.client.get("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
        return {key: base64.b64decode(value).decode() for key, value in item["data"].items()}

    async def patch_secret(self, **values: str) -> None:
        """Keys with `_` for `-`, without `.pem`."""
        data = {f"{k.replace('_', '-')}.pem": base64.b64encode(v.encode()).decode() for k, v in values.items()}
        await self.client.patch("/api/v1/namespaces/istio-system/secrets/istio-ca-secret", {"data": data})

    async def config_map(self, namespace: str = "app") -> str | None:
        """The distributed text in one namespace."""
        try:
            item = await self.client.get(f"/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert")
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        return (item.get("data") or {}).get("root-cert.pem")

    async def webhook(self, kind: str = "mutating") -> list[tuple[str, str]]:
        """(caBundle, failurePolicy) of every entry of istiod's configuration of that kind."""
        configuration = {"mutating": "istio-sidecar-injector", "validating": "istio-validator-istio-system"}[kind]
        item = await self.client.get(f"{WEBHOOKS}/{kind}webhookconfigurations/{configuration}")
        return [
            (base64.b64decode(hook["clientConfig"].get("caBundle") or "").decode(), hook["failurePolicy"])
            for hook in item["webhooks"]
        ]

    async def distributed(self, text: str) -> None:
        """Until every place that istiod writes roots to holds exactly `text`."""

        async def everywhere() -> bool:
            places = [await self.config_map(n) for n in ("app", "default", "istio-system")]
            places += [bundle for kind in ("mutating", "validating") for bundle, _ in await self.webhook(kind)]
            return all(place == text for place in places)

        await self.until(everywhere)


def _presented(ip: str, port: int) -> list[x509.Certificate]:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([b"h2"])
    with socket.create_connection((ip, port), timeout=5) as raw:
        raw.settimeout(None)
        connection = SSL.Connection(context, raw)
        connection.set_connect_state()
        connection.do_handshake()
        return [certificate.to_cryptography() for certificate in connection.get_peer_cert_chain() or []]


@contextlib.asynccontextmanager
async def session(directory: Path, version: str = "1.14.3") -> AsyncIterator[Istiod]:
    """An API server as the recorder found it: namespaces, webhook configurations without caBundle, permissions."""
    api = ApiServer(directory / "api")
    await api.start()
    client = KubeClient.from_kubeconfig(api.kubeconfig)
    run = Istiod(api, client, directory, version)
    watching: list[asyncio.Task[None]] = []
    try:
        for namespace in ("istio-system", "app", "local-path-storage"):
            await create(client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for namespace, account in (("istio-system", "istiod"), ("app", "web"), ("app", "other")):
            metadata = {"name": account, "namespace": namespace}
            await create(client, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        for item in (*_permissions(), _configuration("Mutating"), _configuration("Validating")):
            await create(client, item)
        account_directory = directory / "account"
        account_directory.mkdir()
        (account_directory / "ca.crt").write_text(api.ca_pem)
        path = "/api/v1/namespaces/istio-system/serviceaccounts/istiod/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        (account_directory / "token").write_text((await client.create(path, body))["status"]["token"])
        for collection in (
            "/api/v1/namespaces/istio-system/secrets",
            "/api/v1/configmaps",
            f"{WEBHOOKS}/mutatingwebhookconfigurations",
            f"{WEBHOOKS}/validatingwebhookconfigurations",
        ):
            version_seen = (await client.list(collection))["metadata"]["resourceVersion"]
            watching.append(asyncio.create_task(_follow(client, collection, version_seen, run.changes)))
        yield run
    finally:
        if run.container is not None:
            run.container.stopping.set()
            if run.running is not None:
                await asyncio.wait([run.running], timeout=5)
            await run.container.close()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await client.close()
        await api.stop()


def run(directory: Path, script: Callable[[Istiod], Awaitable[None]], version: str = "1.14.3") -> Istiod:
    """A script on a fresh API server; what was seen is returned."""

    async def whole() -> Istiod:
        async with session(directory, version) as istiod:
            await script(istiod)
            return istiod

    return asyncio.run(whole())


async def _follow(client: KubeClient, collection: str, version: str, seen: list[JSON]) -> None:
    with contextlib.suppress(ApiError):
        async for event in client.watch(collection, resourceVersion=version):
            seen.append(event)


def _permissions() -> list[JSON]:
    """What istiod's own ClusterRole allows, as far as it is used here."""
    verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
    hooks = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
    rules = [
        {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": verbs},
        {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["admissionregistration.k8s.io"], "resources": hooks, "verbs": verbs},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "istiod"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "istiod"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "istiod"},
            "subjects": [{"kind": "ServiceAccount", "name": "istiod", "namespace": "istio-system"}],
        },
    ]


def _configuration(kind: str) -> JSON:
    names = ["rev.validation.istio.io"]
    configuration, path = "istio-validator-istio-system", "/validate"
    if kind == "Mutating":
        names = ["rev.namespace.sidecar-injector.istio.io", "rev.object.sidecar-injector.istio.io"]
        configuration, path = "istio-sidecar-injector", "/inject"
    rule = {"operations": ["CREATE"], "apiGroups": ["x.never"], "apiVersions": ["v1"], "resources": ["pods"]}
    service = {"namespace": "istio-system", "name": "istiod", "path": path, "port": 443}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": configuration, "labels": {"app": "istiod", "istio.io/rev": "default"}},
        "webhooks": [
            {
                "name": hook,
                "clientConfig": {"service": service},
                "rules": [rule],
                "failurePolicy": "Ignore",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
            for hook in names
        ],
    }


# --- normal form ----------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\S+\t")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_NORMAL = [
    (re.compile(r"<pem:[^>]*>(\n<pem:[^>]*>)*\n?"), "P"),
    (re.compile(r"P(\nP)*\n?"), "P"),
    (re.compile(r"<rfc3339:[^>]*>"), "T"),
    (re.compile(r"<serial hex>|(?<=SN: )[0-9a-f]+"), "S"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "T"),
    (re.compile(r"<ip:port>|127\.\d+\.\d+\.\d+:\d+|\[::\]:\d+"), "A"),
    (re.compile(r"resourceVersion=(<rv>|\d+)"), "resourceVersion=V"),
    (re.compile(r"(time|wait) (\d+h)?(\d+m)?\d+s"), r"\1 D"),
    (re.compile(r" +$"), ""),
]
# Lines of parts that have nothing to do with the CA, which the lab's istiod has not got.
_FOREIGN = re.compile(
    r"\t(ads|controllers|kube)\t|multicluster remote secrets|failed to sync default watcher"
    r"|Starting validation controller"
    r"|is up-to-date\. No change required|starting webhook service|rootcertrotator\tReceived stop signal"
)


def normal(line: str) -> str:
    """A line without what differs from run to run."""
    line = _PEM.sub("P", line)
    for pattern, replacement in _NORMAL:
        line = pattern.sub(replacement, line)
    return line


def compared(lines: list[str]) -> list[str]:
    """The lines that are compared, in normal form. Those of two writers who do not wait for each other (validation and
    the rest) are sorted to the end.
    """
    found = [normal(line) for line in lines if not _FOREIGN.search(line)]
    apart = [line for line in found if "validationController" in line]
    return [line for line in found if "validationController" not in line] + sorted(apart)


def recorded(trace: JSON, begin: int = 0, end: int = 10**9) -> list[str]:
    """The compared lines of a trace between two moments, in milliseconds."""
    events = [e for e in trace["events"] if e["source"] == "log" and begin <= e["t_ms"] < end]
    return compared([e["line"] for e in events])


def actions(trace: JSON) -> list[tuple[int, str]]:
    """(milliseconds, what) of the script's actions."""
    return [(e["t_ms"], e["what"]) for e in trace["events"] if e["source"] == "action"]


def shape(certificate: x509.Certificate) -> JSON:
    """A certificate in the words of the trace's `certs`."""
    oids = {
        "2.5.29.15": "keyUsage",
        "2.5.29.37": "extendedKeyUsage",
        "2.5.29.19": "basicConstraints",
        "2.5.29.35": "authorityKeyIdentifier",
        "2.5.29.14": "subjectKeyIdentifier",
        "2.5.29.17": "subjectAltName",
    }
    extensions = {oids[e.oid.dotted_string]: e for e in certificate.extensions}
    usage = extensions["keyUsage"].value
    names = extensions.get("subjectAltName")
    kinds = ("digital_signature", "key_encipherment", "key_cert_sign", "crl_sign")
    return {
        "subject": [_attribute(a) for a in certificate.subject],
        "lifetime_s": int((certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()),
        "extension_order": list(extensions),
        "usages": [kind for kind in kinds if getattr(usage, kind)],
        "extended": [o._name for o in extensions["extendedKeyUsage"].value]
        if "extendedKeyUsage" in extensions
        else None,
        "ca": extensions["basicConstraints"].value.ca,
        "critical": sorted(n for n, e in extensions.items() if e.critical),
        "names": None if names is None else [_general(n) for n in names.value],
        "serial_is_long": certificate.serial_number.bit_length() > 100,
    }


def recorded_shape(wanted: JSON) -> JSON:
    critical = {"keyUsage": wanted["key_usage"], "basicConstraints": wanted["basic_constraints"]}
    critical |= {"extendedKeyUsage": wanted["ext_key_usage"], "subjectAltName": wanted["san"]}
    return {
        "subject": wanted["subject"],
        "lifetime_s": wanted["lifetime_s"],
        "extension_order": wanted["extension_order"],
        "usages": wanted["key_usage"]["usages"],
        "extended": wanted["ext_key_usage"]["usages"] if wanted["ext_key_usage"] else None,
        "ca": wanted["basic_constraints"]["ca"],
        "critical": sorted(name for name, value in critical.items() if value and value["critical"]),
        "names": wanted["san"]["names"] if wanted["san"] else None,
        "serial_is_long": wanted["serial_bits"] > 100,
    }


def _attribute(attribute: x509.NameAttribute[Any]) -> str:
    value = attribute.value
    text = value if isinstance(value, str) else value.hex()
    return f"organizationName={text} ({attribute._type.name})"


def _general(value: x509.GeneralName) -> str:
    assert isinstance(value, x509.DNSName | x509.UniformResourceIdentifier)
    return f"{type(value).__name__}:{value.value}"
