"""The five servers of Linkerd that the API server calls over TLS: what is declared for each, and what it serves.

Their certificates have nothing to do with the trust anchor: each is self-signed at every render of the chart, or comes
from cert-manager (facts 1). The API server verifies what a process *serves* against `caBundle`; a Secret only says what
the process should have read.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.peer_tls import tls_peer
from capstan.cluster.resources import API_SERVICES, MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS, Resource
from capstan.cluster.workloads import is_ready
from capstan.errors import CapstanError, NotFound, Retryable
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.systems.linkerd.layout import COMPONENT_LABEL
from capstan.systems.linkerd.pods import has_ended
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

INJECT_ANNOTATIONS: Final = ("cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret")
CERT_MANAGER_ANNOTATION: Final = "cert-manager.io/certificate-name"


@dataclass(frozen=True, slots=True)
class Hook:
    """One such server, by the names of Linkerd's charts (edge-26.8.3 and back to stable-2.12).

    Attributes:
        name: As Linkerd's checks call it.
        resource: The kind of object that tells the API server about it.
        configuration: That object's name.
        secrets: Secrets that may hold its certificate, the present name first; the older ones have keys `crt.pem` and
            `key.pem` (Linkerd's check falls back to them too).
        service: Its Service: the certificate is for `<service>.<namespace>.svc`.
        label: Pod label, and the value, by which its pods are found.
        container: The container that serves.
        port_name: Name of the container's port. port: Its number where no port has that name.
    """

    name: str
    resource: Resource
    configuration: str
    secrets: tuple[str, ...]
    service: str
    label: tuple[str, str]
    container: str
    port_name: str
    port: int


HOOKS: Final = (
    Hook(
        "proxy-injector", MUTATING_WEBHOOKS, "linkerd-proxy-injector-webhook-config",
        ("linkerd-proxy-injector-k8s-tls", "linkerd-proxy-injector-tls"), "linkerd-proxy-injector",
        (COMPONENT_LABEL, "proxy-injector"), "proxy-injector", "proxy-injector", 8443,
    ),
    Hook(
        "sp-validator", VALIDATING_WEBHOOKS, "linkerd-sp-validator-webhook-config",
        ("linkerd-sp-validator-k8s-tls", "linkerd-sp-validator-tls"), "linkerd-sp-validator",
        (COMPONENT_LABEL, "destination"), "sp-validator", "sp-validator", 8443,
    ),
    Hook(
        "policy-validator", VALIDATING_WEBHOOKS, "linkerd-policy-validator-webhook-config",
        ("linkerd-policy-validator-k8s-tls",), "linkerd-policy-validator",
        (COMPONENT_LABEL, "destination"), "policy", "policy-https", 9443,
    ),
)  # fmt: skip
VIZ_HOOKS: Final = (
    Hook(
        "tap", API_SERVICES, "v1alpha1.tap.linkerd.io", ("tap-k8s-tls", "linkerd-tap-tls"), "tap",
        ("component", "tap"), "tap", "apiserver", 8089,
    ),
    Hook(
        "tap-injector", MUTATING_WEBHOOKS, "linkerd-tap-injector-webhook-config", ("tap-injector-k8s-tls",),
        "tap-injector", ("component", "tap-injector"), "tap-injector", "tap-injector", 8443,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Served:
    """What one process presents.

    Attributes:
        chain: Leaf first; empty if it could not be seen. problem: Why not.
    """

    pod: str
    chain: tuple[Certificate, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class HookReading:
    """One server as declared and as it serves.

    Attributes:
        installed: Whether there is a Secret or a configuration of it.
        anchors: `caBundle`; empty if there is none, or it cannot be read (see `problems`).
        chain: Certificate of the Secret, leaf first; empty if it cannot be read.
        renewed: Whether cert-manager renews the Secret's certificate.
        problems: What of the configuration and the Secret is missing, unreadable, or does not fit.
        available: Of an APIService, why it is not available; empty if it is.
    """

    hook: Hook
    namespace: str
    installed: bool = True
    anchors: Bundle = field(default_factory=Bundle)
    chain: tuple[Certificate, ...] = ()
    renewed: bool = False
    served: tuple[Served, ...] = ()
    problems: tuple[str, ...] = ()
    available: str = ""

    @property
    def dns_name(self) -> str:
        """The name that the API server asks for."""
        return f"{self.hook.service}.{self.namespace}.svc"


def read_hook(
    cluster: Cluster, hook: Hook, namespace: str, pods: Iterable[Object], *, timeout: float, unready: bool = False
) -> HookReading:
    """Read one server. What cannot be read is a problem, no exception.

    Args:
        unready: Ask every process that runs, not only those that the API server may be sent to now.
    """
    problems: list[str] = []
    configuration = _find(cluster, hook.resource, hook.configuration, "", problems)
    # The older names are asked for only where there is something that uses them: each needs a right of its own.
    names = hook.secrets if configuration is not None else hook.secrets[:1]
    found = (_find(cluster, SECRETS, name, namespace, problems) for name in names)
    secret = next((item for item in found if item is not None), None)
    if configuration is None and secret is None and not problems:
        return HookReading(hook, namespace, installed=False)
    anchors = Bundle()
    if configuration is None:
        problems.append(f"there is no {hook.resource.kind} {hook.configuration}")
    else:
        anchors = _anchors(configuration, hook, problems)
    chain: tuple[Certificate, ...] = ()
    if secret is None:
        problems.append(f"there is no secret {namespace}/{hook.secrets[0]}")
    else:
        chain = _chain(secret, problems)
    annotations = (secret or {"metadata": {}})["metadata"].get("annotations") or {}
    return HookReading(
        hook, namespace, anchors=anchors, chain=chain, renewed=CERT_MANAGER_ANNOTATION in annotations,
        served=tuple(
            _served(cluster, hook, namespace, pod, timeout)
            for pod in pods
            if _serves(pod, hook, namespace, unready=unready)
        ),
        problems=tuple(dict.fromkeys(problems)), available=_unavailable(configuration, hook),
    )  # fmt: skip


def _find(cluster: Cluster, resource: Resource, name: str, namespace: str, problems: list[str]) -> Object | None:
    try:
        return cluster.find(resource, name, namespace)
    except CapstanError as error:
        after = f" (run: {error.next_command})" if error.next_command else ""
        problems.append(f"{error.what} {name}: {error.observed}{after}")
        return None


def _anchors(configuration: Object, hook: Hook, problems: list[str]) -> Bundle:
    where = f"caBundle of {hook.configuration}"
    if hook.resource is API_SERVICES:
        client: dict[str, Any] = configuration.get("spec") or {}
    else:
        webhooks = configuration.get("webhooks") or []
        if len(webhooks) != 1:
            problems.append(f"{hook.configuration} has {len(webhooks)} webhooks, expected 1")
        if not webhooks:
            return Bundle()
        client = webhooks[0].get("clientConfig") or {}
    encoded = client.get("caBundle") or ""
    if not encoded:
        annotations = configuration["metadata"].get("annotations") or {}
        why = (
            "cert-manager's cainjector has not filled it in"
            if any(name in annotations for name in INJECT_ANNOTATIONS)
            else "the API server then trusts its host's roots"
        )
        problems.append(f"{where} is empty: {why}")
        return Bundle()
    try:
        return Bundle.parse_lenient(base64.b64decode(encoded, validate=True), where)
    except (binascii.Error, ValueError):
        problems.append(f"{where} is not base64")
    except CapstanError as error:
        problems.append(f"{where}: {error.what}")
    return Bundle()


def _chain(secret: Object, problems: list[str]) -> tuple[Certificate, ...]:
    metadata = secret["metadata"]
    where = f"secret {metadata['namespace']}/{metadata['name']}"
    data = secret.get("data") or {}
    names = ("tls.crt", "tls.key") if "tls.crt" in data or "crt.pem" not in data else ("crt.pem", "key.pem")
    chain: tuple[Certificate, ...] = ()
    try:
        chain = Bundle.parse_lenient(decoded(secret, names[0]), where).certificates
        if not chain[0].key_matches(PrivateKey.parse(decoded(secret, names[1]), where)):
            problems.append(f"{where}: the key does not belong to the certificate")
    except NotFound as error:
        problems.append(f"{where}: {error.what}: {error.expected}")
    except CapstanError as error:
        problems.append(f"{where}: {error.what}")
    return chain


def _serves(pod: Object, hook: Hook, namespace: str, *, unready: bool) -> bool:
    """Whether the API server may be sent to this pod: it is ready, or (`unready`) may become so as it is."""
    metadata, (label, value) = pod["metadata"], hook.label
    return (
        metadata["namespace"] == namespace
        and (metadata.get("labels") or {}).get(label) == value
        and "deletionTimestamp" not in metadata
        and not has_ended(pod)
        and any(item.get("name") == hook.container for item in pod["spec"].get("containers") or [])
        and (is_ready(pod) or (unready and _runs(pod, hook.container)))
    )


def _runs(pod: Object, container: str) -> bool:
    """Whether the container's process is up: one that has not started has read no certificate yet."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any(item.get("name") == container and "running" in (item.get("state") or {}) for item in statuses)


def _served(cluster: Cluster, hook: Hook, namespace: str, pod: Object, timeout: float) -> Served:
    """The chain that a pod presents; asked a second time if the answer was lost."""
    name = str(pod["metadata"]["name"])
    container = next(item for item in pod["spec"]["containers"] if item.get("name") == hook.container)
    ports = {entry.get("name"): int(entry["containerPort"]) for entry in container.get("ports") or []}
    port = ports.get(hook.port_name, hook.port)
    problem = ""
    for _ in range(2):
        try:
            # A server that asks for a client certificate shows its own first, so an alert after that loses nothing.
            answer = tls_peer(cluster, namespace, name, port, f"{hook.service}.{namespace}.svc", timeout=timeout)
            if not answer.chain:
                return Served(name, (), "it ends the handshake without showing a certificate")
            return Served(name, tuple(Certificate.from_der(der, f"pod {namespace}/{name}") for der in answer.chain))
        except Retryable as error:
            problem = f"{error.what}: {error.observed}"
        except CapstanError as error:
            return Served(name, (), f"{error.what}: {error.observed}")
    return Served(name, (), problem)


def _unavailable(configuration: Object | None, hook: Hook) -> str:
    """Why an APIService is not available (condition Available, kube-aggregator)."""
    if hook.resource is not API_SERVICES or configuration is None:
        return ""
    for condition in (configuration.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Available":
            if condition.get("status") == "True":
                return ""
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return f"{hook.configuration} does not say whether it is available"
