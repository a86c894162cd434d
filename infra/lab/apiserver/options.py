"""Checks of query options: dryRun, fieldValidation, fieldManager, list options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import go_json, status

if TYPE_CHECKING:
    from .request import Request
    from .status import Cause

_GROUP = "meta.k8s.io"
_LONGEST_MANAGER = 128


_DURATION = re.compile(r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")
_LONG = ("attach", "exec", "log", "portforward", "proxy")


def check_timeout(request: Request) -> None:
    """400 for a ``timeout`` that is no duration of Go's. Requests that last as long as they like have none."""
    text = request.query.get("timeout")
    if not text or request.info.verb == "watch" or request.info.subresource in _LONG or _DURATION.fullmatch(text):
        return
    words = f'time: invalid duration "{text}"'
    if re.fullmatch(r"[-+]?\d+\.?\d*", text):
        words = f'time: missing unit in duration "{text}"'
    raise status.bad_request(f"invalid timeout specified in the request URL - {words}")


def unsigned(text: str) -> int:
    """A resourceVersion as a number; ValueError in the words of Go's strconv otherwise."""
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 1 << 64:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def check_write(request: Request, kind: str) -> None:
    """422 for wrong options of a write. `kind` is CreateOptions, UpdateOptions, PatchOptions or DeleteOptions."""
    causes = _apply_options(request) if kind == "PatchOptions" else []
    causes += _manager(request.query.get("fieldManager"))
    causes += dry_run(request.query.all("dryRun"))
    validation = request.query.get("fieldValidation")
    if kind != "DeleteOptions" and validation not in ("", "Ignore", "Warn", "Strict"):
        supported = ["", "Ignore", "Strict", "Warn"]
        causes.append(status.unsupported_value("fieldValidation", f'"{validation}"', supported))
    if causes:
        raise status.invalid(kind, "", causes, _GROUP)


def _manager(name: str) -> list[Cause]:
    causes: list[Cause] = []
    if len(name.encode()) > _LONGEST_MANAGER:
        causes.append(status.too_long("fieldManager", f"may not be more than {_LONGEST_MANAGER} bytes"))
    position = 0
    for char in name:
        if not char.isprintable():
            text = f"invalid character U+{ord(char):04X} (at position {position})"
            causes.append(status.invalid_value("fieldManager", go_json.quote(name), text))
        position += len(char.encode())
    return causes


def dry_run(values: list[str]) -> list[Cause]:
    """What is wrong with the values of dryRun, of which there is one: ``All``."""
    if all(value == "All" for value in values):
        return []
    return [status.unsupported_value("dryRun", go_json.encode(values), ["All"])]


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
    for number in ("timeoutSeconds", "limit"):
        query.integer(number)  # 400 for what is no number, whether it is used or not
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
    match, asked = query.get("resourceVersionMatch"), "sendInitialEvents" in query
    if not match and not asked and query.get("resourceVersion") in ("", "0"):
        # a watch from no version is a watch-list
        match, asked = "NotOlderThan", True
    causes: list[Cause] = []
    if asked and match != "NotOlderThan":
        text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        causes.append(status.forbidden_field("resourceVersionMatch", text))
    if not match:
        return causes
    if not asked:
        text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(status.forbidden_field("resourceVersionMatch", text))
    if match != "NotOlderThan":
        causes.append(status.unsupported_value("resourceVersionMatch", f'"{match}"', ["NotOlderThan"]))
    if query.get("continue"):
        text = "resourceVersionMatch is forbidden when continue is provided"
        causes.append(status.forbidden_field("resourceVersionMatch", text))
    return causes
