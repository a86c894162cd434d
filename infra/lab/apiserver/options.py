"""Checks of query options: dryRun, fieldValidation, fieldManager, list options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import status

if TYPE_CHECKING:
    from .request import Request
    from .status import Cause

_GROUP = "meta.k8s.io"


def unsigned(text: str) -> int:
    """A resourceVersion as a number; ValueError in the words of Go's strconv otherwise."""
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 1 << 64:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def check_write(request: Request, kind: str) -> None:
    """422 for wrong options of a write. `kind` is CreateOptions, UpdateOptions, PatchOptions or DeleteOptions."""
    causes: list[Cause] = []
    dry_run = [value for value in request.query.all("dryRun") if value]
    if any(value != "All" for value in dry_run):
        shown = "[" + ", ".join(f'"{value}"' for value in dry_run) + "]"
        causes.append(status.unsupported_value("dryRun", shown.replace(", ", ","), ["All"]))
    manager = request.query.get("fieldManager")
    if kind == "PatchOptions":
        causes.extend(_apply_options(request))
    if len(manager) > 128:
        causes.append(status.too_long("fieldManager", "may not be more than 128 bytes"))
    validation = request.query.get("fieldValidation")
    if kind != "DeleteOptions" and validation not in ("", "Ignore", "Warn", "Strict"):
        supported = ["", "Ignore", "Strict", "Warn"]
        causes.append(status.unsupported_value("fieldValidation", f'"{validation}"', supported))
    if causes:
        raise status.invalid(kind, "", causes, _GROUP)


def _apply_options(request: Request) -> list[Cause]:
    applying = request.content_type in ("application/apply-patch+yaml", "application/apply-patch+cbor")
    if applying:
        if not request.query.get("fieldManager"):
            return [status.required("fieldManager", "is required for apply patch")]
    elif "force" in request.query:
        return [status.forbidden_field("force", "may not be specified for non-apply patch")]
    return []


def check_list(request: Request, watching: bool) -> None:
    """422 for combinations of resourceVersion, resourceVersionMatch and sendInitialEvents which make no sense."""
    query = request.query
    version, match = query.get("resourceVersion"), query.get("resourceVersionMatch")
    causes: list[Cause] = []
    if watching:
        causes.extend(_watch_options(request))
    else:
        if match:
            if not version:
                text = "resourceVersionMatch is forbidden unless resourceVersion is provided"
                causes.append(status.forbidden_field("resourceVersionMatch", text))
            if query.get("continue"):
                text = "resourceVersionMatch is forbidden when continue is provided"
                causes.append(status.forbidden_field("resourceVersionMatch", text))
            if match not in ("Exact", "NotOlderThan"):
                supported = ["Exact", "NotOlderThan", ""]
                causes.append(status.unsupported_value("resourceVersionMatch", f'"{match}"', supported))
            if match == "Exact" and version == "0":
                text = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
                causes.append(status.forbidden_field("resourceVersionMatch", text))
        if "sendInitialEvents" in query:
            causes.append(status.forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if causes:
        raise status.invalid("ListOptions", "", causes, _GROUP)


def _watch_options(request: Request) -> list[Cause]:
    query = request.query
    match = query.get("resourceVersionMatch")
    causes: list[Cause] = []
    if "sendInitialEvents" in query:
        if match != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            causes.append(status.forbidden_field("resourceVersionMatch", text))
        if query.get("continue"):
            causes.append(status.forbidden_field("continue", "continue is forbidden for watch"))
    elif match:
        text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(status.forbidden_field("resourceVersionMatch", text))
    return causes
