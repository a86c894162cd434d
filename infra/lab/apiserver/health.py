"""/version and the health endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import status
from .request import Response

if TYPE_CHECKING:
    from .request import Request

VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "unknown",
    "gitTreeState": "archive",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.26.4",
    "compiler": "gc",
    "platform": "linux/amd64",
}
CHECKS = ("ping", "log", "informer-sync", "poststarthook/rbac/bootstrap-roles", "poststarthook/bootstrap-controller")


def paths() -> list[str]:
    """Every path that is answered here."""
    names = ("healthz", "livez", "readyz")
    return [f"/{name}{check}" for name in names for check in ("", *(f"/{check}" for check in CHECKS))] + ["/version"]


def answer(request: Request) -> Response:
    """404 in plain text for a path that does not exist."""
    parts = [part for part in request.path.split("/") if part]
    if parts == ["version"] and request.method != "GET":
        raise status.method_not_allowed()
    match parts:
        case ["version"]:
            return Response.json(VERSION)
        case [("healthz" | "livez" | "readyz") as name]:
            if "verbose" not in request.query:
                return Response.text("ok")
            lines = "".join(f"[+]{check} ok\n" for check in CHECKS)
            return Response.text(f"{lines}{name} check passed\n")
        case [("healthz" | "livez" | "readyz"), *check] if "/".join(check) in CHECKS:
            return Response.text("ok")
    raise status.page_not_found()
