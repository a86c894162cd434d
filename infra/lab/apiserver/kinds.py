"""The resources the server knows: built-in kinds and those added by CustomResourceDefinitions."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")


SCALE_PATHS = {"spec": "spec.replicas", "status": "status.replicas", "selector": "spec.selector"}


@dataclass(frozen=True)
class Subresource:
    """``pods/log``: `group`, `version` and `kind` describe the object sent or answered."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True)
class KindInfo:
    """One resource. Names as in discovery; `group` is empty for the core group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    list_kind: str = ""
    # metadata.generation counts changes of the specification
    generation: bool = False
    # a PUT without resourceVersion overwrites whatever is there
    unconditional_update: bool = True
    # a PUT on a missing name creates it
    create_on_update: bool = False
    # DELETE answers the object instead of a Status
    delete_returns_object: bool = False
    # field selectors beside metadata.name and metadata.namespace: label -> path in the object
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    # served but never stored (reviews)
    virtual: bool = False
    # from a CustomResourceDefinition: no strategic merge patch, items of lists carry kind and apiVersion
    custom: bool = False
    # storage key when it is not this resource's own: events.k8s.io/events are the core events in other words
    stored_as: str = ""
    # what every answer warns of
    deprecation: str = ""
    # custom resources: the version objects are stored in, the schema, the columns of tables
    storage_version: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    printer_columns: tuple[Mapping[str, Any], ...] = field(default=(), hash=False, repr=False)
    # where the scale subresource finds replicas and selector ("spec", "status", "selector" -> dotted path)
    scale_paths: Mapping[str, str] = field(default_factory=lambda: SCALE_PATHS, hash=False)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Qualified name: ``deployments.apps``, ``pods``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def storage(self) -> str:
        """Key under which the store keeps the objects."""
        return self.stored_as or self.resource

    @property
    def group_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def listed_as(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()

    @property
    def has_status(self) -> bool:
        return self.subresource("status") is not None

    def subresource(self, name: str) -> Subresource | None:
        return next((sub for sub in self.subresources if sub.name == name), None)

    @property
    def storage_hash(self) -> str:
        """``storageVersionHash`` of discovery: the first 8 bytes of SHA-256 over group, version and kind."""
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return base64.b64encode(digest[:8]).decode()


class Registry:
    """All kinds served, in discovery order (built-in groups first, custom ones by the time they were added)."""

    def __init__(self) -> None:
        from .builtin_kinds import builtin_kinds  # the table needs the classes above

        self._by_path: dict[tuple[str, str, str], KindInfo] = {}
        for kind in builtin_kinds():
            self.add(kind)

    def __iter__(self) -> Iterator[KindInfo]:
        return iter(self._by_path.values())

    def add(self, kind: KindInfo) -> None:
        self._by_path[(kind.group, kind.version, kind.plural)] = kind

    def remove(self, group: str, version: str, plural: str) -> None:
        self._by_path.pop((group, version, plural), None)

    def find(self, group: str, version: str, plural: str) -> KindInfo | None:
        """The resource at ``/apis/GROUP/VERSION/.../PLURAL``."""
        return self._by_path.get((group, version, plural))

    def by_kind(self, group: str, kind: str, version: str = "") -> KindInfo | None:
        """The first resource of that Kind (any version when `version` is empty)."""
        return next(
            (k for k in self if k.group == group and k.kind == kind and version in ("", k.version)),
            None,
        )

    def by_resource(self, resource: str) -> KindInfo | None:
        """By storage key: ``deployments.apps``."""
        return next((k for k in self if k.resource == resource), None)

    def groups(self) -> list[str]:
        """Group names in order, the core group ("") first."""
        return list(dict.fromkeys(kind.group for kind in self))

    def versions(self, group: str) -> list[str]:
        """Versions of a group; GA first, then by the rules of Kubernetes version priority."""
        versions = dict.fromkeys(kind.version for kind in self if kind.group == group)
        return sorted(versions, key=version_priority, reverse=True)


def version_priority(version: str) -> tuple[int, int, int]:
    """Sort key of API versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 (Kubernetes docs, CRD versioning)."""
    rest = version[1:]
    for rank, stage in ((2, "beta"), (1, "alpha")):
        if stage in rest:
            major, _, minor = rest.partition(stage)
            return (rank, int(major or 0), int(minor or 0)) if major.isdigit() else (0, 0, 0)
    return (3, int(rest), 0) if rest.isdigit() else (0, 0, 0)
