"""Rules for Endpoints, EndpointSlices, Ingresses and NetworkPolicies.

One rule of the real server is left out: addresses may be on loopback, where all pods of the lab are.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.validation_meta import IMMUTABLE, bad, duplicate, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_PROTOCOLS = ("SCTP", "TCP", "UDP")
_PORT_RANGE = "must be between 1 and 65535, inclusive"
_ADDRESS = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
_FAMILIES = {"IPv4": (4, "must be an IPv4 address"), "IPv6": (6, "must be an IPv6 address")}


def endpoints(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    out: list[Cause] = []
    for number, subset in enumerate(new.get("subsets") or []):
        at = f"subsets[{number}]"
        groups = [(name, subset.get(name) or []) for name in ("addresses", "notReadyAddresses")]
        if not any(addresses for _, addresses in groups):
            out.append(missing(at, "must specify `addresses` or `notReadyAddresses`"))
        for name, addresses in groups:
            for position, address in enumerate(addresses):
                if _version(address.get("ip") or "") is None:
                    out.append(bad(f"{at}.{name}[{position}].ip", address.get("ip") or "", _ADDRESS))
        ports = subset.get("ports") or []
        for position, port in enumerate(ports):
            out += _endpoint_port(port, f"{at}.ports[{position}]", named=len(ports) > 1)
    return out


def _endpoint_port(port: Object, at: str, *, named: bool) -> list[Cause]:
    out: list[Cause] = []
    name, protocol = port.get("name") or "", port.get("protocol") or ""
    if named and not name:
        out.append(missing(f"{at}.name"))
    elif name:
        out += [bad(f"{at}.name", name, message) for message in meta.label(name)]
    if not 1 <= (port.get("port") or 0) <= 65535:
        out.append(bad(f"{at}.port", port.get("port") or 0, _PORT_RANGE))
    if not protocol:
        out.append(missing(f"{at}.protocol"))
    elif protocol not in _PROTOCOLS:
        out.append(unsupported(f"{at}.protocol", protocol, _PROTOCOLS))
    return out


def endpoint_slice(new: Object, old: Object | None) -> list[Cause]:
    family = new.get("addressType") or ""
    out: list[Cause] = []
    if not family:
        out.append(missing("addressType"))
    elif family not in ("FQDN", "IPv4", "IPv6"):
        out.append(unsupported("addressType", family, ("FQDN", "IPv4", "IPv6")))
    names: set[str] = set()
    for number, port in enumerate(new.get("ports") or []):
        at, name = f"ports[{number}]", port.get("name") or ""
        out += [bad(f"{at}.name", name, message) for message in (meta.label(name) if name else [])]
        if name in names:
            out.append(duplicate(f"{at}.name", name))
        names.add(name)
        if port.get("protocol") not in _PROTOCOLS:
            out.append(unsupported(f"{at}.protocol", port.get("protocol") or "", _PROTOCOLS))
    for number, endpoint in enumerate(new.get("endpoints") or []):
        at, addresses = f"endpoints[{number}].addresses", endpoint.get("addresses") or []
        if not addresses:
            out.append(missing(at, "must contain at least 1 address"))
        for position, address in enumerate(addresses):
            out += _slice_address(address, family, f"{at}[{position}]")
    if old is not None and family != (old.get("addressType") or ""):
        out.append(bad("addressType", family, IMMUTABLE))
    return out


def _slice_address(address: str, family: str, at: str) -> list[Cause]:
    if family == "FQDN":
        return [bad(at, address, message) for message in meta.subdomain(address)]
    version = _version(address)
    if version is None:
        return [bad(at, address, _ADDRESS)]
    wanted, message = _FAMILIES.get(family, (version, ""))
    return [] if version == wanted else [bad(at, address, message)]


def _version(address: str) -> int | None:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return None


def ingress(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    rules = spec.get("rules") or []
    if not rules and not spec.get("defaultBackend"):
        # the server validates its internal type, whose JSON has Go's names
        shown = {
            "IngressClassName": spec.get("ingressClassName"),
            "DefaultBackend": None,
            "TLS": spec.get("tls"),
            "Rules": None,
        }
        out.append(bad(path, shown, "either `defaultBackend` or `rules` must be specified"))
    if spec.get("defaultBackend"):
        out += _backend(spec["defaultBackend"], f"{path}.defaultBackend")
    for number, rule in enumerate(rules):
        at = f"{path}.rules[{number}]"
        host = rule.get("host") or ""
        if _version(host) is not None:
            out.append(bad(f"{at}.host", host, "must be a DNS name, not an IP address"))
        elif host and not host.startswith("*."):
            out += [bad(f"{at}.host", host, message) for message in meta.subdomain(host)]
        http = rule.get("http")
        if http is not None and not http.get("paths"):
            out.append(missing(f"{at}.http.paths"))
        for position, entry in enumerate((http or {}).get("paths") or []):
            out += _ingress_path(entry, f"{at}.http.paths[{position}]")
    return out


def _ingress_path(entry: Object, at: str) -> list[Cause]:
    kind, value = entry.get("pathType"), entry.get("path") or ""
    if kind is None:
        return [missing(f"{at}.pathType", "pathType must be specified")]
    out: list[Cause] = []
    if kind in ("Exact", "Prefix"):
        if not value.startswith("/"):
            out.append(bad(f"{at}.path", value, "must be an absolute path"))
    elif kind == "ImplementationSpecific":
        if value and not value.startswith("/"):
            out.append(bad(f"{at}.path", value, "must be an absolute path"))
    else:
        out.append(unsupported(f"{at}.pathType", kind, ("Exact", "ImplementationSpecific", "Prefix")))
    return out + _backend(entry.get("backend") or {}, f"{at}.backend")


def _backend(backend: Object, at: str) -> list[Cause]:
    service, resource = backend.get("service"), backend.get("resource")
    if service is None and resource is None:
        return [missing(at, "at least one of resource or service backend must be specified")]
    if service is not None and resource is not None:
        return [bad(at, "", "cannot set both resource and service backends")]
    if service is None:
        return []
    out: list[Cause] = []
    name, port = service.get("name") or "", service.get("port") or {}
    if not name:
        out.append(missing(f"{at}.service.name"))
    else:
        out += [bad(f"{at}.service.name", name, message) for message in meta.label_1035(name)]
    if not port.get("name") and not port.get("number"):
        out.append(missing(at, "port name or number is required"))
    elif port.get("number") and not 1 <= port["number"] <= 65535:
        out.append(bad(f"{at}.service.port.number", port["number"], _PORT_RANGE))
    return out


def network_policy(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out = meta.label_selector(spec.get("podSelector"), f"{path}.podSelector")
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(spec.get(direction) or []):
            at = f"{path}.{direction}[{number}]"
            for position, port in enumerate(rule.get("ports") or []):
                if port.get("protocol") not in (None, *_PROTOCOLS):
                    out.append(unsupported(f"{at}.ports[{position}].protocol", port["protocol"], _PROTOCOLS))
                value = port.get("port")
                if isinstance(value, int) and not 1 <= value <= 65535:
                    out.append(bad(f"{at}.ports[{position}].port", value, _PORT_RANGE))
            for position, peer in enumerate(rule.get(side) or []):
                out += _peer(peer, f"{at}.{side}[{position}]")
    types = spec.get("policyTypes") or []
    if len(types) > 2:
        out.append(bad(f"{path}.policyTypes", types, "may not specify more than two policyTypes"))
        return out
    known = ("Egress", "Ingress")
    out += [unsupported(f"{path}.policyTypes[{n}]", kind, known) for n, kind in enumerate(types) if kind not in known]
    return out


def _peer(peer: Object, at: str) -> list[Cause]:
    if not any(peer.get(name) is not None for name in ("podSelector", "namespaceSelector", "ipBlock")):
        return [missing(at, "must specify a peer")]
    out: list[Cause] = []
    for name in ("podSelector", "namespaceSelector"):
        out += meta.label_selector(peer.get(name), f"{at}.{name}")
    return out
