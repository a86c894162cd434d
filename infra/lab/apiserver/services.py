"""What the server gives a Service: cluster addresses, IP families, node ports; and what it takes back.

Source: Kubernetes docs, "Service", "Publishing Services", "IPv4/IPv6 dual-stack" (the cluster has IPv4 alone), and the
API reference of ServiceSpec. Values go with the type that needs them, unless the writer changed them as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .api import Api

Object = dict[str, Any]

NETWORK = "10.96"
NODE_PORTS = range(30000, 32768)  # --service-node-port-range
_ADDRESS_FIELDS = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


def create(api: Api, obj: Object) -> None:
    """Give a new Service what its type needs. In place. Raises ApiStatusError 422 for what is not to be had."""
    obj["status"] = {"loadBalancer": {}}
    spec = obj.setdefault("spec", {})
    if _has_address(spec) and not spec.get("selector") and _given_address(spec) == "None":
        # nobody knows the endpoints' families: it may have any
        spec.setdefault("ipFamilyPolicy", "RequireDualStack")
        if not spec.get("ipFamilies"):
            spec["ipFamilies"] = ["IPv4"] if spec["ipFamilyPolicy"] == "SingleStack" else ["IPv4", "IPv6"]
    _allocate(api, obj)


def update(obj: Object, old: Object) -> None:
    """Keep what the writer left out, drop what the new type does not need. In place."""
    spec, before = obj.setdefault("spec", {}), old.get("spec") or {}
    if _has_address(spec) and _has_address(before):
        for field in _ADDRESS_FIELDS:
            if not spec.get(field) and before.get(field):
                spec[field] = before[field]
        if spec.get("clusterIP") != before.get("clusterIP") and spec.get("clusterIPs") == before.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]
    elif _has_address(before):
        for field in _ADDRESS_FIELDS:
            _drop_unchanged(spec, before, field)
    if _has_node_ports(spec) and _has_node_ports(before):
        _keep_node_ports(spec, before)
    elif _has_node_ports(before) and _node_ports(spec) == _node_ports(before):
        for port in spec.get("ports") or []:
            port.pop("nodePort", None)
    if before.get("type") == "LoadBalancer" and spec.get("type") != "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"):
            _drop_unchanged(spec, before, field)
    if before.get("type") == "ExternalName" and spec.get("type") != "ExternalName":
        _drop_unchanged(spec, before, "externalName")
    if _has_external_policy(before) and not _has_external_policy(spec):
        _drop_unchanged(spec, before, "externalTrafficPolicy")


def complete_update(api: Api, obj: Object) -> None:
    """Give a changed Service what its new type needs. In place. Raises ApiStatusError 422."""
    _allocate(api, obj)


def _allocate(api: Api, obj: Object) -> None:
    spec, metadata = obj["spec"], obj["metadata"]
    others = [
        stored.obj.get("spec") or {}
        for stored in api.store.objects("services")
        if stored.key != (metadata.get("namespace") or "", metadata["name"])
    ]
    if _has_address(spec):
        _allocate_address(api, obj, {other.get("clusterIP") for other in others})
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
    if _has_node_ports(spec) and spec.get("allocateLoadBalancerNodePorts") is not False:
        _allocate_ports(api, obj, {port for other in others for port in _node_ports(other) if port})


def _allocate_address(api: Api, obj: Object, used: set[Any]) -> None:
    spec = obj["spec"]
    given = _given_address(spec)
    if given and given != "None" and given in used:
        text = f"failed to allocate IP {given}: provided IP is already allocated"
        cause = status.invalid_value("spec.clusterIPs", f'["{given}"]', text)
        raise status.invalid("Service", obj["metadata"]["name"], [cause])
    if not given:
        given = next(ip for ip in _addresses(api) if ip not in used)
    spec["clusterIP"] = given
    spec["clusterIPs"] = [given]


def _addresses(api: Api) -> Iterator[str]:
    while True:
        yield f"{NETWORK}.{api.rng.randrange(1, 255)}.{api.rng.randrange(1, 255)}"


def _allocate_ports(api: Api, obj: Object, used: set[int]) -> None:
    causes = []
    ports = obj["spec"].get("ports") or []
    taken = set(used)
    for number, port in enumerate(ports):
        wanted = port.get("nodePort") or 0
        path = f"spec.ports[{number}].nodePort"
        if wanted in used:
            causes.append(status.invalid_value(path, str(wanted), "provided port is already allocated"))
        elif wanted and wanted not in NODE_PORTS:
            span = f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
            text = f"provided port is not in the valid range. The range of valid ports is {span}"
            causes.append(status.invalid_value(path, str(wanted), text))
        taken.add(wanted)
    if causes:
        raise status.invalid("Service", obj["metadata"]["name"], causes[:1])
    for port in ports:
        if not port.get("nodePort"):
            same = (p["nodePort"] for p in ports if p.get("nodePort") and _twins(p, port))
            free = next(same, None) or api.rng.choice([n for n in NODE_PORTS if n not in taken])
            port["nodePort"] = free
            taken.add(free)


def _twins(one: Object, other: Object) -> bool:
    """Ports of one number and different protocols share their node port."""
    return bool(one.get("port") == other.get("port") and one.get("protocol") != other.get("protocol"))


def _keep_node_ports(spec: Object, before: Object) -> None:
    used = {port for port in _node_ports(spec) if port}
    held = {port.get("name") or "": port.get("nodePort") or 0 for port in before.get("ports") or []}
    for port in spec.get("ports") or []:
        value = held.get(port.get("name") or "", 0)
        if not port.get("nodePort") and value and value not in used:
            port["nodePort"] = value
            used.add(value)


def _given_address(spec: Object) -> str:
    return spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or []), "")


def _has_address(spec: Object) -> bool:
    return spec.get("type") != "ExternalName"


def _has_node_ports(spec: Object) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer")


def _has_external_policy(spec: Object) -> bool:
    return _has_node_ports(spec) or bool(spec.get("type") == "ClusterIP" and spec.get("externalIPs"))


def _node_ports(spec: Object) -> list[int]:
    return [port.get("nodePort") or 0 for port in spec.get("ports") or []]


def _drop_unchanged(spec: Object, before: Object, field: str) -> None:
    if spec.get(field) == before.get(field):
        spec.pop(field, None)
