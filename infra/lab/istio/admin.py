"""The ports of a proxy that an operator reads: Envoy's admin (15000) and the agent's (15020, 15021), for light proxies.

JSON and text are Envoy's own: config_dump and certs (envoy/admin/v3), the names of statistics, protobuf's JSON mapping
(bytes in base64, times in RFC 3339, empty fields left out). Private keys are `[redacted]`, as Envoy prints them.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from infra.lab.istio.material import uris
from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509

    from infra.lab.istio.material import Material

JSON = dict[str, Any]

_ADMIN = "type.googleapis.com/envoy.admin.v3"
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name
_REDACTED = base64.b64encode(b"[redacted]").decode()
_DYNAMIC = ("dynamic_active_secrets", "dynamic_warming_secrets")
_KNOWN_RESOURCES = {
    *_DYNAMIC,
    *("static_secrets", "bootstrap", "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"),
    *("static_listeners", "dynamic_listeners", "static_route_configs", "dynamic_route_configs"),
}


def secrets(material: Material | None) -> JSON:
    """The SecretsConfigDump: `default` and `ROOTCA`, active once there is material, warming before."""
    dump: JSON = {"@type": f"{_ADMIN}.SecretsConfigDump"}
    if material is None:
        dump["dynamic_warming_secrets"] = [_uninitialised(name) for name in ("default", "ROOTCA")]
        return dump
    certificate = {
        "certificate_chain": {"inline_bytes": _base64(material.chain_pem)},
        "private_key": {"inline_bytes": _REDACTED},
    }
    trusted = {"trusted_ca": {"inline_bytes": _base64(material.roots_pem)}}
    dump["dynamic_active_secrets"] = [
        _secret("default", material.leaf_updated, {"tls_certificate": certificate}),
        _secret("ROOTCA", material.roots_updated, {"validation_context": trusted}),
    ]
    return dump


def config_dump(material: Material | None, query: str, *, version: str, files: bool = False) -> httpd.Response:
    """GET /config_dump, whole or with `resource=` and `name_regex=`.

    Args:
        files: Certificates come from files (Citadel's), so that there are no dynamic secrets.
    """
    asked = parse_qs(query)
    dump: JSON = {"@type": f"{_ADMIN}.SecretsConfigDump"} if files else secrets(material)
    if "resource" not in asked:
        bootstrap = {"@type": f"{_ADMIN}.BootstrapConfigDump", "bootstrap": {"node": {"user_agent_name": "envoy"}}}
        whole = [
            bootstrap,
            {"@type": f"{_ADMIN}.ClustersConfigDump", "version_info": version},
            {"@type": f"{_ADMIN}.ListenersConfigDump", "version_info": version},
            {"@type": f"{_ADMIN}.RoutesConfigDump"},
            dump,
        ]
        return json_page({"configs": whole})
    resource = asked["resource"][0]
    if resource not in _KNOWN_RESOURCES:
        return httpd.Response.text(f"{resource} not found in config dump", 404)
    pattern = re.compile(asked.get("name_regex", [".*"])[0])
    found = [entry for entry in dump.get(resource, []) if pattern.fullmatch(entry["name"])]
    kind = "StaticSecret" if resource == "static_secrets" else "DynamicSecret"
    configs = [{"@type": f"{_ADMIN}.SecretsConfigDump.{kind}", **entry} for entry in found]
    return json_page({"configs": configs} if configs else {})


def certs(material: Material | None, *, ca_path: str = "<inline>", chain_path: str = "<inline>") -> JSON:
    """GET /certs: of each context the first root, and the leaf; no issuers."""
    if material is None:
        return {}
    entry = {
        "ca_cert": [_certificate(material.roots[0], ca_path)],
        "cert_chain": [_certificate(material.leaf, chain_path)],
    }
    return {"certificates": [entry, entry]}  # the inbound listener's context, and the outbound clusters'


def envoy_statistics(material: Material | None, tls: Mapping[str, int], *, renewals: int) -> dict[str, float]:
    """The statistics that matter here, by Envoy's names."""
    listener = "listener.0.0.0.0_15006.ssl"
    names = ("connection_error", "fail_verify_cert_hash", "fail_verify_error", "fail_verify_no_cert", "fail_verify_san")
    found: dict[str, float] = {
        f"{listener}.{name}": tls.get(name, 0) for name in (*names, "handshake", "no_certificate")
    }
    days = 4294967295 if material is None else max((material.leaf.not_valid_after_utc - _now()).days, 0)
    found["server.days_until_first_cert_expiring"] = days
    found["server.live"] = int(material is not None)
    found["listener_manager.lds.update_success"] = int(material is not None)
    found["sds.default.update_success"] = renewals
    return found


def statistics_text(found: Mapping[str, float], query: str) -> str:
    """GET /stats: `name: value` lines, with `filter=` a regular expression."""
    pattern = re.compile(parse_qs(query).get("filter", [""])[0])
    return "".join(f"{name}: {value:g}\n" for name, value in sorted(found.items()) if pattern.search(name))


def agent_metrics(material: Material | None, found: Mapping[str, float], *, csrs: int, failures: int) -> str:
    """GET /stats/prometheus of the agent: its own metrics, then Envoy's that are exported by default."""
    lines = []
    if material is not None:
        left = (material.leaf.not_valid_after_utc - _now()).total_seconds()
        lines += [
            "# HELP istio_agent_cert_expiry_seconds The time remaining, in seconds, before the certificate chain will "
            "expire. A negative value indicates the cert is expired.",
            "# TYPE istio_agent_cert_expiry_seconds gauge",
            f'istio_agent_cert_expiry_seconds{{resource_name="default"}} {left}',
        ]
    lines += [
        "# HELP istio_agent_num_outgoing_requests Number of total outgoing requests (e.g. to a token exchange server, "
        "CA, etc.)",
        "# TYPE istio_agent_num_outgoing_requests counter",
        f'istio_agent_num_outgoing_requests{{request_type="csr"}} {csrs}',
    ]
    if failures:
        lines += [
            "# HELP istio_agent_num_failed_outgoing_requests Number of failed outgoing requests (e.g. to a token "
            "exchange server, CA, etc.)",
            "# TYPE istio_agent_num_failed_outgoing_requests counter",
            f'istio_agent_num_failed_outgoing_requests{{request_type="csr"}} {failures}',
        ]
    return "".join(f"{line}\n" for line in lines) + envoy_prometheus(found)


def envoy_prometheus(found: Mapping[str, float]) -> str:
    """Envoy's share: of TLS outcomes nothing, because Istio's bootstrap does not include their prefix."""
    exported = {name: value for name, value in found.items() if name.startswith(("server.", "listener_manager."))}
    lines = []
    for name, value in sorted(exported.items()):
        metric = "envoy_" + name.replace(".", "_")
        lines += [f"# TYPE {metric} gauge", f"{metric}{{}} {value:g}"]
    return "".join(f"{line}\n" for line in lines)


def timestamp(moment: datetime) -> str:
    """RFC 3339 with milliseconds, as Envoy prints them."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _secret(name: str, updated: datetime, body: JSON) -> JSON:
    return {
        "name": name,
        "version_info": f"{updated.timestamp():.9f}",
        "last_updated": timestamp(updated),
        "secret": {"@type": _SECRET, "name": name, **body},
    }


def _uninitialised(name: str) -> JSON:
    secret = {"@type": _SECRET, "name": name}
    return {"name": name, "version_info": "uninitialized", "last_updated": timestamp(_now()), "secret": secret}


def _certificate(certificate: x509.Certificate, path: str) -> JSON:
    left = max(certificate.not_valid_after_utc - _now(), timedelta())
    return {
        "path": path,
        "serial_number": f"{certificate.serial_number:x}",
        "subject_alt_names": [{"uri": uri} for uri in uris(certificate)],
        "days_until_expiration": str(left.days),
        "valid_from": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expiration_time": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _base64(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()


def json_page(value: JSON) -> httpd.Response:
    """A page as protobuf prints messages."""
    return httpd.Response(200, json.dumps(value, indent=1).encode() + b"\n", "application/json")


def _now() -> datetime:
    return datetime.now(UTC)
