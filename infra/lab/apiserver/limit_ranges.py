"""LimitRanger: what a namespace gives to containers that do not say, and refuses to those that ask for too much.

Source: Kubernetes docs, "Limit Ranges". Of the types, Container is kept (not Pod, nor PersistentVolumeClaim).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .admission_errors import refusal
from .schema_scalars import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .api import AdmissionAttributes
    from .store import Store

Object = dict[str, Any]

ANNOTATION = "kubernetes.io/limit-ranger"
_GROUPS = (("containers", "container"), ("initContainers", "init container"))


def complete(attributes: AdmissionAttributes, store: Store) -> None:
    """Give the containers of a new pod what they left out. In place; an annotation tells what was given."""
    pod = attributes.obj
    if pod is None:
        return
    said: list[str] = []
    for limits in _items(store, attributes.namespace):
        for group, noun in _GROUPS:
            for container in pod.get("spec", {}).get(group) or []:
                said += _fill(container, limits, f"{noun} {container.get('name') or ''}")
    if said:
        annotations = pod["metadata"].setdefault("annotations", {})
        annotations[ANNOTATION] = f"LimitRanger plugin set: {'; '.join(said)}"


def check(attributes: AdmissionAttributes, store: Store) -> None:
    """Raises ApiStatusError 403 with all that is out of bounds."""
    found: list[str] = []
    for limits in _items(store, attributes.namespace):
        for group, _ in _GROUPS:
            for container in (attributes.obj or {}).get("spec", {}).get(group) or []:
                found += _out_of_bounds(container.get("resources") or {}, limits)
    if found:
        raise refusal(attributes, found[0] if len(found) == 1 else f"[{', '.join(found)}]")


def _items(store: Store, namespace: str) -> Iterator[Object]:
    for stored in store.objects("limitranges", namespace):
        for item in (stored.obj.get("spec") or {}).get("limits") or []:
            if item.get("type") == "Container":
                yield item


def _fill(container: Object, limits: Object, who: str) -> list[str]:
    resources = container.setdefault("resources", {})
    said: list[str] = []
    for field, given, noun in (
        ("requests", limits.get("defaultRequest") or {}, "request"),
        ("limits", limits.get("default") or {}, "limit"),
    ):
        held = resources.get(field) or {}
        missing = {name: amount for name, amount in given.items() if name not in held}
        if missing:
            resources[field] = {**held, **missing}
            said.append(f"{', '.join(sorted(missing))} {noun} for {who}")
    return said


def _out_of_bounds(resources: Object, limits: Object) -> list[str]:
    asked, allowed = resources.get("requests") or {}, resources.get("limits") or {}
    out: list[str] = []
    for name, least in sorted((limits.get("min") or {}).items()):
        words = f"minimum {name} usage per Container is {least}"
        if name not in asked:
            out.append(f"{words}.  No request is specified")
        elif parse_quantity(str(asked[name])) < parse_quantity(str(least)):
            out.append(f"{words}, but request is {asked[name]}")
        elif name in allowed and parse_quantity(str(allowed[name])) < parse_quantity(str(least)):
            out.append(f"{words}, but limit is {allowed[name]}")
    for name, most in sorted((limits.get("max") or {}).items()):
        words = f"maximum {name} usage per Container is {most}"
        if name not in allowed:
            out.append(f"{words}.  No limit is specified")
        elif parse_quantity(str(allowed[name])) > parse_quantity(str(most)):
            out.append(f"{words}, but limit is {allowed[name]}")
        elif name in asked and parse_quantity(str(asked[name])) > parse_quantity(str(most)):
            out.append(f"{words}, but request is {asked[name]}")
    return out
