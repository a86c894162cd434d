"""Which representation of the answer the client takes: the object, a Table, or metadata alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import status

OFFERED = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
# We speak of protobuf, as the real server does, but answer JSON to the clients asking for either.
_SERVED = {"application/json", "application/yaml"}
_TRANSFORMS = {"Table", "PartialObjectMetadata", "PartialObjectMetadataList"}


@dataclass(frozen=True)
class MediaType:
    """One entry of an Accept header: ``application/json;as=Table;v=v1;g=meta.k8s.io``."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    quality: float = 1.0


@dataclass(frozen=True)
class Accepted:
    """`transform` is "" for the object itself, else Table or PartialObjectMetadata(List)."""

    media_type: str = "application/json"
    transform: str = ""
    version: str = "v1"


def parse_accept(header: str) -> list[MediaType]:
    """Entries in order of preference: higher q first, otherwise as written (RFC 9110 section 12.5.1)."""
    entries = []
    for part in header.split(","):
        pieces = [piece.strip() for piece in part.split(";")]
        if not pieces[0]:
            continue
        parameters = {}
        quality = 1.0
        for piece in pieces[1:]:
            key, _, value = piece.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
            else:
                parameters[key.strip()] = value.strip()
        entries.append(MediaType(pieces[0].lower(), parameters, quality))
    return sorted(entries, key=lambda entry: -entry.quality)


def negotiate(header: str, transforms: bool = True) -> Accepted:
    """Choose among what the client takes; raises 406 when nothing fits.

    `transforms` False: only the plain object is on offer (discovery, subresources without a table).
    """
    if not header:
        return Accepted()
    refused_transform = False
    for entry in parse_accept(header):
        name = {"*/*": "application/json", "application/*": "application/json"}.get(entry.name, entry.name)
        if name not in _SERVED:
            continue
        transform = entry.parameters.get("as", "")
        if not transform:
            return Accepted(name)
        good = transform in _TRANSFORMS and entry.parameters.get("g") == "meta.k8s.io"
        if transforms and good and entry.parameters.get("v") in ("v1", "v1beta1"):
            return Accepted(name, transform, entry.parameters["v"])
        refused_transform = True
    if refused_transform:
        text = f"only the following media types are accepted: {', '.join(OFFERED)}"
        raise status.ApiStatusError(406, text, "NotAcceptable")
    if any(entry.name == "application/vnd.kubernetes.protobuf" for entry in parse_accept(header)):
        return Accepted()
    raise status.not_acceptable(OFFERED)
