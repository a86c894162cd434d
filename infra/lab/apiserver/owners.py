"""Owner references given twice: a real server drops the second and says so in a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .request import Request

_WARNING = (
    ".metadata.ownerReferences contains duplicate entries{}; API server dedups owner references in 1.20+, and may "
    "reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}"
)


def without_duplicates(request: Request, obj: dict[str, Any], *, admitted: bool = False) -> None:
    """Leave every owner reference of `obj` once, in place. `admitted`: admission has already looked at the object."""
    given = obj["metadata"].get("ownerReferences") or []
    kept: list[dict[str, Any]] = []
    for reference in given:
        if reference not in kept:
            kept.append(reference)
    if len(kept) == len(given):
        return
    repeated = [
        str(reference.get("uid") or "") for number, reference in enumerate(given) if reference in given[:number]
    ]
    obj["metadata"]["ownerReferences"] = kept
    when = " after mutating admission happens" if admitted else ""
    request.warnings.append(_WARNING.format(when, ", ".join(repeated)))
