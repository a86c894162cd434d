"""A pod's volumes as directories on this host, filled and refreshed as a kubelet does.

ConfigMap, Secret, projected and downwardAPI volumes are written atomically (see atomic.py); emptyDir is a plain
directory that dies with the pod; hostPath and persistentVolumeClaim are directories of the node that outlive it; a csi
volume is filled by its driver (csi.py).
Nothing outside the lab's own directory is ever touched.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from infra.lab.kubelet import atomic
from infra.lab.kubelet.environment import ConfigError, Lookup, data_of, field_value, resource_value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from infra.lab.kubelet.csi import CsiDriver

JSON = dict[str, Any]
TokenSource = Callable[[JSON, JSON], Awaitable[tuple[str, float]]]  # (pod, source) -> token, lifetime in seconds


class PodVolumes:
    """The volumes of one pod.

    Args:
        directory: The pod's own directory.
        node_directory: What stands for the node's disk (hostPath, claims).
        lookup: Finds ConfigMaps and Secrets of the pod's namespace.
        request_token: Asks the API server for a service-account token.
        drivers: CSI drivers of the node, by name.
    """

    def __init__(
        self,
        directory: Path,
        node_directory: Path,
        lookup: Lookup,
        request_token: TokenSource,
        drivers: Mapping[str, CsiDriver],
    ) -> None:
        self.directory = directory
        self._node = node_directory
        self._lookup = lookup
        self._request_token = request_token
        self._drivers = drivers
        self._published: dict[str, CsiDriver] = {}  # by volume name
        self._tokens: dict[str, tuple[str, float]] = {}  # audience/path -> token, when to renew (monotonic)

    async def write(self, pod: JSON) -> bool:
        """Bring every volume up to date with `pod` and the objects it refers to; True when any content changed.

        Raises ConfigError naming the first thing that is missing.
        """
        changed = False
        for volume in pod["spec"].get("volumes") or []:
            if "csi" in volume:
                await self._publish(pod, volume)
                continue
            payload = await self._payload(pod, volume)
            if payload is not None:
                changed |= atomic.write(self.directory / volume["name"], payload)
            else:
                self._host_directory(pod, volume).mkdir(parents=True, exist_ok=True)
        return changed

    async def unpublish(self, pod_uid: str) -> None:
        """Tell the drivers of this pod's csi volumes that it has ended."""
        while self._published:
            name, driver = self._published.popitem()
            await driver.unpublish(pod_uid, name)

    async def _publish(self, pod: JSON, volume: JSON) -> None:
        """Let the volume's driver fill it, once. Raises ConfigError."""
        name, driver_name = volume["name"], volume["csi"]["driver"]
        if name in self._published:
            return
        if (driver := self._drivers.get(driver_name)) is None:
            raise ConfigError(
                f'volume "{name}" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name '
                f"{driver_name} not found in the list of registered CSI drivers"
            )
        target = self.path(pod, name)
        target.mkdir(parents=True, exist_ok=True)
        await driver.publish(pod, volume, target)
        self._published[name] = driver

    def path(self, pod: JSON, name: str) -> Path:
        """Where the volume called `name` is on this host. Raises ConfigError when the pod has none of that name."""
        for volume in pod["spec"].get("volumes") or []:
            if volume["name"] == name:
                return self._host_directory(pod, volume)
        raise ConfigError(f"volume {name!r} is mounted but not defined")

    def subpath(self, pod: JSON, name: str, sub: str, copy: Path) -> Path:
        """Where `sub` of a volume is for a container that starts now. Raises ConfigError.

        A subPath of an atomically written volume is bound to the file of this moment and never follows a later swap
        (https://kubernetes.io/docs/concepts/storage/volumes/#using-subpath), so the container gets a copy at `copy`.
        """
        if ".." in PurePosixPath(sub).parts or sub.startswith("/"):
            raise ConfigError(f"subPath {sub!r} must be relative and must not contain '..'")
        source = self.path(pod, name) / sub
        if not (self.path(pod, name) / atomic.DATA).is_symlink():
            source.mkdir(parents=True, exist_ok=True)
            return source
        if not source.exists():
            raise ConfigError(f"subPath {sub!r} does not exist in volume {name!r}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
        else:
            copy.unlink(missing_ok=True)
            shutil.copy(source, copy)
        return copy

    def references(self, pod: JSON) -> set[tuple[str, str]]:
        """("configmaps" | "secrets", name) of everything these volumes show."""
        found: set[tuple[str, str]] = set()
        for volume in pod["spec"].get("volumes") or []:
            for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
                if "configMap" in source:
                    found.add(("configmaps", source["configMap"].get("name", "")))
                if "secret" in source:
                    found.add(("secrets", source["secret"].get("secretName") or source["secret"].get("name", "")))
        return found

    def token_due(self) -> float | None:
        """Monotonic time at which the first token wants renewal, None without tokens."""
        return min((due for _, due in self._tokens.values()), default=None)

    def _host_directory(self, pod: JSON, volume: JSON) -> Path:
        if "hostPath" in volume:
            return self._node / "host" / str(volume["hostPath"]["path"]).lstrip("/")
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            return self._node / "claims" / str(pod["metadata"]["namespace"]) / str(claim)
        return self.directory / str(volume["name"])

    async def _payload(self, pod: JSON, volume: JSON) -> dict[str, atomic.Entry] | None:
        """What an atomically written volume shall contain; None for directories."""
        if "projected" in volume:
            mode = volume["projected"].get("defaultMode", 0o644)
            payload: dict[str, atomic.Entry] = {}
            for source in volume["projected"].get("sources") or []:
                payload |= await self._source(pod, source, mode, f"{volume['name']}/")
            return payload
        for kind in ("configMap", "secret", "downwardAPI"):
            if kind in volume:
                return await self._source(pod, volume, volume[kind].get("defaultMode", 0o644), volume["name"])
        if any(kind in volume for kind in ("emptyDir", "hostPath", "persistentVolumeClaim")):
            return None
        kinds = sorted(set(volume) - {"name"}) or ["(none)"]
        raise ConfigError(f"volume {volume['name']!r}: the lab's kubelet has no driver for {kinds[0]}")

    async def _source(self, pod: JSON, source: JSON, mode: int, where: str) -> dict[str, atomic.Entry]:
        if (spec := source.get("configMap")) is not None:
            return self._keys("configmaps", spec.get("name", ""), spec, mode)
        if (spec := source.get("secret")) is not None:
            return self._keys("secrets", spec.get("secretName") or spec.get("name", ""), spec, mode)
        if (spec := source.get("downwardAPI")) is not None:
            return {
                item["path"]: atomic.Entry(_downward(pod, item).encode(), item.get("mode", mode))
                for item in spec.get("items") or []
            }
        if (spec := source.get("serviceAccountToken")) is not None:
            key = f"{where}{spec['path']}"
            token, due = self._tokens.get(key, ("", 0.0))
            if time.monotonic() >= due:
                token, lifetime = await self._request_token(pod, spec)
                # A kubelet renews when 80 % of the life (or 24 h) has passed.
                self._tokens[key] = (token, time.monotonic() + min(lifetime * 0.8, 24 * 3600))
            return {spec["path"]: atomic.Entry(token.encode(), mode)}
        raise ConfigError(f"projected source {sorted(source)}: the lab's kubelet does not know it")

    def _keys(self, plural: str, name: str, spec: JSON, mode: int) -> dict[str, atomic.Entry]:
        found = self._lookup(plural, name)
        if found is None:
            if spec.get("optional"):
                return {}
            raise ConfigError(f'{plural[:-1]} "{name}" not found')
        data = data_of(found)
        if not spec.get("items"):
            return {key: atomic.Entry(value, mode) for key, value in data.items()}
        payload = {}
        for item in spec["items"]:
            if item["key"] in data:
                payload[item["path"]] = atomic.Entry(data[item["key"]], item.get("mode", mode))
            elif not spec.get("optional"):
                raise ConfigError(f"{plural[:-1]} {name!r} references non-existent key: {item['key']}")
        return payload


def _downward(pod: JSON, item: JSON) -> str:
    if "fieldRef" in item:
        return field_value(pod, item["fieldRef"]["fieldPath"])
    return resource_value(pod, item["resourceFieldRef"])
