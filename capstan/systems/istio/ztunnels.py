"""What every node's ztunnel holds: one leaf per identity that runs on its node, each with the roots it came with.

Source: ztunnel src/admin.rs, `/config_dump` on its admin port, member `certificates`: identity, state, certChain and
rootCerts (camel case since serde renames them, snake case before), PEM as base64. One read per node, not per pod.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.portforward import http_get
from capstan.errors import CapstanError, InvalidInput, NotFound
from capstan.pki.bundle import Bundle
from capstan.systems.asking import ask_twice, is_gone
from capstan.systems.istio.layout import PROXY
from capstan.systems.istio.pods import ADMIN_PORT, container_runs, proxy_env
from capstan.systems.istio.proxies import MAX_DUMP, ProxyReading

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import Owner

AVAILABLE: Final = "Available"
_IDENTITY: Final = re.compile(r"spiffe://[^/]+/ns/(?P<namespace>[^/]+)/sa/(?P<account>[^/]+)")


def read_ztunnel(cluster: Cluster, pod: Object, owner: Owner, timeout: float) -> tuple[ProxyReading, ...]:
    """Ask one ztunnel: a reading per certificate; one unreadable reading if it does not answer; none if it is gone,
    does not run, or has no workload on its node."""
    containers = pod["spec"].get("containers") or [{}]
    container = next((item for item in containers if item.get("name") == PROXY), containers[0])
    if not container_runs(pod, str(container.get("name", PROXY))):
        return ()
    metadata = pod["metadata"]
    name, env = str(metadata["name"]), proxy_env(container)
    where = f"ztunnel {metadata['namespace']}/{name} in cluster {cluster.name}"
    try:
        status, body = ask_twice(
            cluster,
            lambda: http_get(
                cluster, metadata["namespace"], name, ADMIN_PORT, "/config_dump", timeout=timeout, limit=MAX_DUMP
            ),
        )
        if status != 200:
            raise NotFound(
                "the ztunnel does not say what it holds", observed=f"HTTP {status}", expected="a config dump"
            )
        entries = read_dump(body, where)
    except CapstanError as error:
        if is_gone(cluster, pod):
            return ()
        problem = f"{error.what}: {error.observed}"
        return (ProxyReading(pod, owner, name, "ztunnel", env, None, (), None, problem),)
    return tuple(
        ProxyReading(pod, owner, f"{name}[{_short(identity)}]", "ztunnel", env, roots, chain, None, problem)
        for identity, chain, roots, problem in entries
    )


def read_dump(body: bytes, where: str) -> tuple[tuple[str, tuple[Certificate, ...], Bundle | None, str], ...]:
    """Identity, chain (leaf first), roots and problem of every certificate in a dump.

    Raises:
        InvalidInput: This is no dump of a ztunnel.
    """
    try:
        entries = json.loads(body)["certificates"]
        return tuple(_entry(entry, where) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            "no ztunnel config dump", where=where, observed=f"{type(error).__name__}", expected="a list `certificates`"
        ) from error


def _entry(entry: dict[str, Any], where: str) -> tuple[str, tuple[Certificate, ...], Bundle | None, str]:
    identity, state = str(entry["identity"]), str(entry.get("state", ""))
    if state != AVAILABLE:
        return identity, (), None, f"leaf and roots: {state or 'no state'}"
    place = f"{where}, identity {identity}"
    problems = []
    chain: tuple[Certificate, ...] = ()
    roots: Bundle | None = None
    try:
        # Before 1.2x the leaf stood alone in caCert, and certChain held the rest.
        held = _bundle([*_items(entry, "caCert", "ca_cert"), *_items(entry, "certChain", "cert_chain")], place)
        leaves = [item for item in held if not item.is_ca]
        chain = (*leaves[:1], *(item for item in held if item not in leaves[:1])) if leaves else ()
    except CapstanError as error:
        problems.append(f"leaf: {error.what}: {error.observed}")
    else:
        if not chain:
            problems.append("leaf: none among its certificates")
    try:
        items = _items(entry, "rootCerts", "root_certs")
        roots = _bundle(items, place) if items else None
        if roots is None:
            problems.append("roots: this version does not say which it holds")
    except CapstanError as error:
        problems.append(f"roots: {error.what}: {error.observed}")
    return identity, chain, roots, "; ".join(problems)


def _items(entry: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    return next((list(entry[name]) for name in names if entry.get(name)), [])


def _bundle(items: list[dict[str, Any]], where: str) -> Bundle:
    try:
        text = b"\n".join(base64.b64decode(str(item["pem"]), validate=True) for item in items)
    except binascii.Error as error:
        raise InvalidInput("bytes are not base64", where=where, observed=str(error), expected="base64 PEM") from error
    return Bundle.parse_lenient(text, where)


def _short(identity: str) -> str:
    found = _IDENTITY.fullmatch(identity)
    return f"{found['namespace']}/{found['account']}" if found else identity
