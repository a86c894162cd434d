"""Reading what Envoy says of its secrets: `/config_dump` (dynamic secrets, whole or filtered) and `/certs`.

Pure: bytes in, certificates out. Shapes: Envoy's admin API, envoy.admin.v3.SecretsConfigDump and
envoy.admin.v3.Certificates. The private key is redacted by Envoy itself and is not looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.pki.inspect import Certificate

LEAF: Final = "default"
ROOTS: Final = "ROOTCA"
_DYNAMIC: Final = "SecretsConfigDump.DynamicSecret"
_DUMP: Final = "SecretsConfigDump"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The two secrets of a proxy's workload identity.

    Attributes:
        chain: Its leaf first, then what it sends along; empty if it has none yet.
        roots: What it trusts; None if it has none yet.
        updated: When the later of the two was taken.
        problems: What could not be read, and why.
    """

    chain: tuple[Certificate, ...] = ()
    roots: Bundle | None = None
    updated: datetime | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Serials:
    """What `/certs` tells: serial numbers, and no names.

    Attributes:
        leaves: Of the certificates that are presented.
        roots: Of the trust anchors; Envoy lists only the first one of each context.
    """

    leaves: frozenset[int]
    roots: frozenset[int]


def read_secrets(active: bytes, warming: bytes = b"", where: str = "proxy") -> Secrets:
    """The secrets in a config dump.

    Args:
        active: Answer to `/config_dump`, whole or with `resource=dynamic_active_secrets`.
        warming: Answer with `resource=dynamic_warming_secrets`: only used to say why something is missing.

    Raises:
        InvalidInput: This is no config dump.
    """
    try:
        found: dict[str, list[dict[str, Any]]] = {}
        for item in _dynamic(active, where):
            found.setdefault(str(item.get("name")), []).append(item)
        waiting = {str(item.get("name")) for item in _dynamic(warming, where)} if warming else set()
        waiting |= {str(item.get("name")) for item in _dynamic(active, where, "dynamic_warming_secrets")}
        return _read(found, waiting, where)
    except (AttributeError, TypeError) as error:
        raise InvalidInput(
            "no config dump", where=where, observed=f"JSON of another shape: {error}", expected="Envoy's /config_dump"
        ) from error


def _read(found: dict[str, list[dict[str, Any]]], waiting: set[str], where: str) -> Secrets:
    problems: list[str] = []
    chain: tuple[Certificate, ...] = ()
    roots: Bundle | None = None
    for name, kind, path in ((LEAF, "leaf", _CHAIN), (ROOTS, "roots", _TRUSTED)):
        held: list[dict[str, Any] | None] = [*found.get(name, ())] or [None]
        try:
            certificates, *others = (_certificates(item, path, f"{where}, secret {name}") for item in held)
        except (InvalidPem, InvalidCertificate) as error:
            problems.append(f"{kind}: {error.what}: {error.observed or error.expected}")
            continue
        if any(other != certificates for other in others):
            # Envoy keeps one for each way of asking that a listener or cluster names: two while they are exchanged.
            problems.append(f"{kind}: it holds secret {name} {len(held)} times, and not the same")
        elif certificates is None:
            state = "still warming" if name in waiting else "not in its config dump"
            problems.append(f"{kind}: secret {name} is {state}")
        elif name == LEAF:
            chain = tuple(certificates)
        else:
            roots = certificates
    every = [item for name in (LEAF, ROOTS) for item in found.get(name) or ()]
    times = [moment for item in every if (moment := _moment(item.get("last_updated")))]
    return Secrets(chain, roots, max(times, default=None), tuple(problems))


def read_serials(certs: bytes, where: str = "proxy") -> Serials:
    """What `/certs` lists.

    Raises:
        InvalidInput: This is no answer of `/certs`.
    """
    leaves: set[int] = set()
    roots: set[int] = set()
    try:
        for entry in _load(certs)["certificates"]:
            for key, into in (("cert_chain", leaves), ("ca_cert", roots)):
                into.update(int(str(item["serial_number"]), 16) for item in entry.get(key) or ())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            "no list of certificates",
            where=where,
            observed=f"JSON of another shape: {error}",
            expected="Envoy's /certs",
        ) from error
    return Serials(frozenset(leaves), frozenset(roots))


_CHAIN: Final = (("tls_certificate", "certificate_chain"),)
_TRUSTED: Final = (
    ("validation_context", "trusted_ca"),
    ("combined_validation_context", "default_validation_context", "trusted_ca"),
)


def _dynamic(dump: bytes, where: str, group: str = "dynamic_active_secrets") -> Iterator[dict[str, Any]]:
    """The dynamic secrets of a dump: by themselves if it was filtered, inside a SecretsConfigDump if it is whole."""
    configs = _load(dump).get("configs")
    if configs is None and dump.strip() in (b"{}", b""):
        return  # what Envoy answers when nothing matches the filter
    if not isinstance(configs, list):
        raise InvalidInput("no config dump", where=where, observed="other JSON", expected="Envoy's /config_dump")
    for item in configs:
        kind = str(item.get("@type", ""))
        if kind.endswith(_DYNAMIC):
            if group == "dynamic_active_secrets":
                yield item
        elif kind.endswith(_DUMP):
            yield from item.get(group) or ()


def _load(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text or b"{}")
    except ValueError as error:
        raise InvalidInput("the answer is no JSON", observed=str(error), expected="Envoy's admin API") from error
    if not isinstance(value, dict):
        raise InvalidInput("the answer is no JSON object", observed=type(value).__name__, expected="Envoy's admin API")
    return value


def _certificates(item: dict[str, Any] | None, paths: tuple[tuple[str, ...], ...], where: str) -> Bundle | None:
    if item is None or item.get("error_state"):
        return None
    for path in paths:
        source: Any = item.get("secret") or {}
        for key in path:
            source = source.get(key) or {}
            if validator := source.get("custom_validator_config"):
                raise InvalidPem(
                    "Envoy verifies peers by a validator of its own", where=where,
                    observed=f"{validator.get('name')}: another identity provider than istiod fills it",
                    expected="a list of roots, as istiod's agent gives it",
                )  # fmt: skip
        if text := _inline(source, where):
            return Bundle.parse_lenient(text, where)
    return None


def _inline(source: dict[str, Any], where: str) -> bytes:
    if "inline_bytes" in source:
        try:
            return base64.b64decode(str(source["inline_bytes"]), validate=True)
        except binascii.Error as error:
            raise InvalidPem("bytes are not base64", where=where, observed=str(error), expected="base64") from error
    if "inline_string" in source:
        return str(source["inline_string"]).encode()
    if "filename" in source:
        raise InvalidPem(
            "Envoy reads it from a file and does not say what it read", where=where,
            observed=f"filename {source['filename']}", expected="inline bytes",
        )  # fmt: skip
    return b""


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
