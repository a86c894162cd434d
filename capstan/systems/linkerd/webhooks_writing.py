"""What a rotation writes of one webhook: `caBundle` of its configuration, and the pair in its serving Secret.

Both are replaced under the resourceVersion they were read with, each only where it leaves every call verifiable.

Helm renders another pair at every upgrade (`genSelfSignedCert`), in both places at once: it takes nothing back, so that
its objects are written. cert-manager, Argo CD and Flux keep the objects as they have them: theirs are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import API_SERVICES, SECRETS
from capstan.errors import CapstanError, GateRefused, InvalidCertificate, NotFound, OwnedElsewhere
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.systems.base import Change, IssuerMaterial
from capstan.systems.linkerd.checks_hooks import (
    CERT_MANAGER_ANNOTATION,
    INJECT_ANNOTATIONS,
    Hook,
    HookReading,
)
from capstan.systems.linkerd.checks_webhooks import serving_problem
from capstan.systems.linkerd.layout import Tool, owner_of, short
from capstan.systems.linkerd.owners import RELEASE_NAME, RELEASE_NAMESPACE, require_ours
from capstan.systems.linkerd.secrets import decoded, encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

_AUTOMATIC: Final = "https://linkerd.io/2/tasks/automatically-rotating-webhook-tls-credentials/"
_SHOWN: Final = 10


def require_writable(cluster: Cluster, reading: HookReading, accept: Collection[Tool]) -> None:
    """See `LinkerdWebhook.require_writable`."""
    hook = reading.hook
    configuration = cluster.find(hook.resource, hook.configuration)
    secret = _find_secret(cluster, hook, reading.namespace)
    # 1. Does cert-manager renew it? Then it has the key, and a command of its own.
    _require_not_injected(cluster, hook, configuration, secret, reading.namespace)
    # 2. Would a tool undo the write?
    remedy = (
        "Linkerd's chart makes other webhook certificates at every render: a sync replaces them by itself, and drops"
        f" calls until each server has read its own; without a gap: cert-manager, as {_AUTOMATIC}"
    )
    for item, place in ((configuration, f"{hook.resource.kind} {hook.configuration}"), (secret, "its serving Secret")):
        if item is not None:
            require_ours(cluster, item, place, remedy, {*accept, Tool.HELM}, cli_install=False)
    # 3. Is it all there?
    if reading.problems:
        raise GateRefused(
            f"the webhook {hook.name} is not as Linkerd's charts make it", where=f"cluster {cluster.name}",
            observed="; ".join(reading.problems),
            expected=f"one webhook with a caBundle, and a pair of certificate and key for {reading.dns_name}",
            next_command="capstan check",
        )  # fmt: skip


def renders_anew(cluster: Cluster, hook: Hook, namespace: str) -> str:
    """See `LinkerdWebhook.renders_anew`."""
    secret = _find_secret(cluster, hook, namespace)
    if secret is None or owner_of(secret) is not Tool.HELM:
        return ""
    annotations = secret["metadata"].get("annotations") or {}
    return f"{annotations.get(RELEASE_NAMESPACE, namespace)}/{annotations.get(RELEASE_NAME, 'unknown')}"


def ensure_ca_bundle(
    cluster: Cluster,
    hook: Hook,
    roots: Bundle,
    read: Callable[[], HookReading],
    now: datetime,
) -> Change:
    """Make `caBundle` hold exactly these.

    Args:
        read: Asks every process anew; called where something is to be taken away.

    Raises:
        GateRefused: A process serves, or the Secret holds, what these do not verify. Nothing was written.
        NotFound: There is no such configuration. Conflict: Somebody wrote in between.
    """
    item = cluster.get(hook.resource, hook.configuration)
    place = f"{hook.resource.kind} {hook.configuration}"
    present, version = ca_bundle(item, hook), str(item["metadata"]["resourceVersion"])
    before = tuple(certificate.fingerprint for certificate in present)
    if present.fingerprints == roots.fingerprints:
        return Change(place, before, before, False, version, version)
    if present.fingerprints - roots.fingerprints:
        _require_nobody_left(read(), roots, now, place)
    text = encoded(roots.pem(trailing_newline=True))
    after = cluster.replace(hook.resource, _with_ca_bundle(item, hook, text))
    held = tuple(certificate.fingerprint for certificate in roots)
    return Change(place, before, held, True, version, str(after["metadata"]["resourceVersion"]), "it held others")


def ensure_secret(cluster: Cluster, hook: Hook, namespace: str, pair: IssuerMaterial, now: datetime) -> Change:
    """Make the serving Secret hold this pair, certificate and key in one write.

    Raises:
        GateRefused: `caBundle` does not verify it. Nothing was written.
        InvalidCertificate: The key does not belong to the certificate.
        NotFound: There is no such Secret. Conflict: Somebody wrote in between.
    """
    secret = _secret(cluster, hook, namespace)
    place = f"secret {namespace}/{secret['metadata']['name']}"
    if not pair.certificate.key_matches(pair.key):
        raise InvalidCertificate(
            "the serving key does not belong to its certificate", where=place, observed=repr(pair.key),
            expected=f"the key of {pair.certificate!r}",
        )  # fmt: skip
    version = str(secret["metadata"]["resourceVersion"])
    before: tuple[str, ...] = ()
    try:
        held = _pair(secret, place)
        before = tuple(certificate.fingerprint for certificate in held.chain)
        if held.chain == pair.chain and held.key == pair.key:
            return Change(place, before, before, False, version, version)
    except CapstanError:
        pass  # what cannot be read, or does not belong together, is replaced
    told = ca_bundle(cluster.get(hook.resource, hook.configuration), hook)
    if problem := serving_problem(pair.chain, f"{hook.service}.{namespace}.svc", told, now):
        raise GateRefused(
            "the API server would refuse this serving certificate", where=place, observed=problem,
            expected=f"caBundle of {hook.configuration} with {pair.certificate.fingerprint[:16]}",
            next_command="capstan status",
        )  # fmt: skip
    certificate_key, key_key = _entries(secret)
    data = {
        **(secret.get("data") or {}),
        certificate_key: encoded(pair.chain_pem() + "\n"),
        key_key: encoded(_key_text(pair.key)),
    }
    after = cluster.replace(SECRETS, {**secret, "data": data})
    held_now = tuple(certificate.fingerprint for certificate in pair.chain)
    return Change(place, before, held_now, True, version, str(after["metadata"]["resourceVersion"]), "it held another")


def read_pair(cluster: Cluster, hook: Hook, namespace: str) -> IssuerMaterial:
    """The pair as the Secret has it.

    Raises:
        NotFound: The Secret or an entry of it is missing.
        InvalidPem, InvalidCertificate: Certificate or key cannot be read, or do not belong together.
    """
    secret = _secret(cluster, hook, namespace)
    return _pair(secret, f"secret {namespace}/{secret['metadata']['name']}")


def ca_bundle(item: Object, hook: Hook) -> Bundle:
    """What the API server is told to verify against; empty where it is told nothing that can be read."""
    text = _client(item, hook).get("caBundle") or ""
    holder: Object = {"metadata": item["metadata"], "data": {"caBundle": text}}
    try:
        return Bundle.parse_lenient(decoded(holder, "caBundle"), f"caBundle of {hook.configuration}")
    except CapstanError:
        return Bundle()


def _client(item: Object, hook: Hook) -> dict[str, Any]:
    """Where the caBundle is: of the one webhook, or of the APIService itself.

    Raises:
        GateRefused: The configuration has not exactly one webhook.
    """
    if hook.resource is API_SERVICES:
        found: dict[str, Any] = item.get("spec") or {}
        return found
    webhooks = item.get("webhooks") or []
    if len(webhooks) != 1:
        raise GateRefused(
            "this configuration is not as Linkerd's charts make it",
            where=f"{hook.resource.kind} {hook.configuration}", observed=f"{len(webhooks)} webhooks",
            expected="exactly one", next_command=f"kubectl get {hook.resource.plural} {hook.configuration} -o yaml",
        )  # fmt: skip
    client: dict[str, Any] = webhooks[0].get("clientConfig") or {}
    return client


def _with_ca_bundle(item: Object, hook: Hook, text: str) -> Object:
    client = {**_client(item, hook), "caBundle": text}
    if hook.resource is API_SERVICES:
        return {**item, "spec": client}
    return {**item, "webhooks": [{**item["webhooks"][0], "clientConfig": client}]}


def _require_nobody_left(reading: HookReading, roots: Bundle, now: datetime, place: str) -> None:
    chains = [(f"pod {served.pod}", served.chain, served.problem) for served in reading.served]
    chains.append(("the Secret", reading.chain, ""))
    refused = [
        f"{who}: {why}"
        for who, chain, problem in chains
        if (why := problem or (serving_problem(chain, reading.dns_name, roots, now) if chain else "cannot be read"))
    ]
    if refused:
        raise GateRefused(
            "the API server would refuse what is still served", where=place, observed="; ".join(refused[:_SHOWN]),
            expected=f"every process to serve a certificate that {short(roots.fingerprints)} verifies",
            next_command="capstan status",
        )  # fmt: skip


def _require_not_injected(
    cluster: Cluster, hook: Hook, configuration: Object | None, secret: Object | None, namespace: str
) -> None:
    marks = {
        name: value
        for item, names in ((configuration, INJECT_ANNOTATIONS), (secret, (CERT_MANAGER_ANNOTATION,)))
        if item is not None
        for name, value in (item["metadata"].get("annotations") or {}).items()
        if name in names
    }
    if not marks:
        return
    certificate = marks.get(CERT_MANAGER_ANNOTATION) or marks.get(INJECT_ANNOTATIONS[0], "").partition("/")[2]
    raise OwnedElsewhere(
        "cert-manager renews this webhook's certificate",
        where=f"{hook.resource.kind} {hook.configuration} in cluster {cluster.name}",
        observed=", ".join(f"{name}: {value}" for name, value in sorted(marks.items())),
        expected="a pair that nothing else renews",
        next_command=f"cmctl renew -n {namespace} {certificate or hook.secrets[0]}; then: capstan check",
    )


def _find_secret(cluster: Cluster, hook: Hook, namespace: str) -> Object | None:
    """The present name first; the older ones as Linkerd's check falls back to them."""
    found = (cluster.find(SECRETS, name, namespace) for name in hook.secrets)
    return next((item for item in found if item is not None), None)


def _secret(cluster: Cluster, hook: Hook, namespace: str) -> Object:
    secret = _find_secret(cluster, hook, namespace)
    if secret is None:
        raise NotFound(
            "the webhook's serving Secret is gone", where=f"cluster {cluster.name}, namespace {namespace}",
            observed=f"none of {', '.join(hook.secrets)}", expected="the Secret that its server mounts",
            next_command=f"kubectl get secrets -n {namespace}",
        )  # fmt: skip
    return secret


def _entries(secret: Object) -> tuple[str, str]:
    """Which entries the server reads: the older Secrets have Linkerd's own names for them."""
    data = secret.get("data") or {}
    return ("crt.pem", "key.pem") if "crt.pem" in data and "tls.crt" not in data else ("tls.crt", "tls.key")


def _pair(secret: Object, place: str) -> IssuerMaterial:
    certificate_key, key_key = _entries(secret)
    chain = Bundle.parse_lenient(decoded(secret, certificate_key), place).certificates
    key = PrivateKey.parse(decoded(secret, key_key), place)
    if not chain[0].key_matches(key):
        raise InvalidCertificate(
            "the serving key does not belong to its certificate", where=place, observed=repr(key),
            expected=f"the key of {chain[0]!r}", next_command="capstan check",
        )  # fmt: skip
    return IssuerMaterial(chain, key)


def _key_text(key: PrivateKey) -> bytes:
    """RSA as the charts write it; P-256 as PKCS 8, which the policy-validator (Rust) reads as well as those in Go."""
    return key.pem() if key.algorithm.startswith("RSA") else key.pkcs8_pem()
