"""What is wrong with the plug-in CAs of an inventory: AKS add-ons whose CA is in a Key Vault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from capstan.config import PluginCa, System
from deployments.inventory import Inventory
from deployments.problems import Path, Problem
from deployments.yaml_source import Source

_OBJECTS = ("root_cert", "ca_cert", "ca_key", "cert_chain")
# Key Vault, "Objects, identifiers, and versioning": 1 to 127 characters, 0-9, a-z, A-Z and -.
_OBJECT_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")
# Azure Resource Manager ids are compared without regard to case.
_CLUSTER_ID = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ContainerService/managedClusters/[^/]+",
    re.IGNORECASE,
)


def plugin_cas(inventory: Inventory, source: Source) -> Iterator[Problem]:
    """Every cluster of an AKS add-on says where its CA is, no other does, and no two share one."""
    first: dict[tuple[str, ...], str] = {}
    for index, entry in enumerate(inventory.domains):
        for at, cluster in enumerate(entry.clusters):
            where: Path = ("domains", index, "clusters", at)
            here: Path = (*where, "plugin_ca")
            ca = cluster.plugin_ca
            if entry.system is not System.AKS_ISTIO:
                if ca is not None:
                    yield source.problem(here, f"the Key Vault of a {entry.system.value}", "system: aks-istio")
                continue
            if ca is None or not (ca.key_vault or ca.cluster_id):
                place = here if here in source.places else where if where in source.places else ("domains", index)
                given = "a plug-in CA without place" if ca else "no plugin_ca"
                yield source.problem(place, given, "plugin_ca with cluster_id (an ARM id) or key_vault (a URL)")
                continue
            yield from _fields(ca, here, source)
            # One Key Vault may hold the CAs of many clusters, but each intermediate is one cluster's own.
            secrets = (ca.key_vault.lower().rstrip("/"), *(getattr(ca, name).lower() for name in _OBJECTS))
            key = (ca.cluster_id.lower(),) if ca.cluster_id else secrets
            name = f"{entry.name}/{cluster.name}"
            if first.setdefault(key, name) != name:
                yield source.problem(here, f"the CA of {first[key]}", "secrets of its own for each cluster")


def _fields(ca: PluginCa, here: Path, source: Source) -> Iterator[Problem]:
    if ca.cluster_id and not _CLUSTER_ID.fullmatch(ca.cluster_id):
        expected = "/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ContainerService/managedClusters/NAME"
        yield source.problem((*here, "cluster_id"), f'"{ca.cluster_id}"', expected)
    if ca.key_vault:
        parts = urlsplit(ca.key_vault)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
            yield source.problem((*here, "key_vault"), f'"{ca.key_vault}"', "https://NAME.vault.azure.net")
    names = [getattr(ca, name) for name in _OBJECTS]
    for field, name in zip(_OBJECTS, names, strict=True):
        if not _OBJECT_NAME.fullmatch(name):
            place: Path = (*here, field) if (*here, field) in source.places else here
            yield source.problem(
                place, f'"{name}"', "1 to 127 letters, digits and hyphens, as Key Vault names a secret"
            )
        elif names.count(name) > 1:
            place = (*here, field) if (*here, field) in source.places else here
            yield source.problem(place, f'{field}: "{name}" for more than one object', "four secrets of their own")
