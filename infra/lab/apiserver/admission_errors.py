"""How admission refuses: ``pods "web-" is forbidden: ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .status import ApiStatusError, forbidden

if TYPE_CHECKING:
    from .api import AdmissionAttributes


def shown_name(attributes: AdmissionAttributes) -> str:
    """The object's name in messages; where it is still to be generated, the prefix it will have."""
    metadata = (attributes.obj or attributes.old or {}).get("metadata") or {}
    return str(metadata.get("name") or attributes.name or metadata.get("generateName") or "")


def refusal(attributes: AdmissionAttributes, message: str) -> ApiStatusError:
    """403 about the object of this write."""
    return forbidden(attributes.kind.plural, shown_name(attributes), message, attributes.kind.group)
