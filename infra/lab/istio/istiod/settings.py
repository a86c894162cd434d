"""What an istiod is told: its environment, its mesh configuration, its place."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from infra.lab.istio.istiod.versions import Rules, flag
from infra.lab.linkerd.flags import parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]
MESH_FILE = "/etc/istio/config/mesh"
CA_SECRET = "istio-ca-secret"  # noqa: S105 - a Secret's name
CACERTS_SECRET = "cacerts"  # noqa: S105 - a Secret's name
RELOAD_DELAY_ANNOTATION = "lab.capstan.dev/reload-delay-seconds"
"""Seconds between the arrival of new files in the pod's volume and the moment this istiod notices."""
DEAD_WATCHER_ANNOTATION = "lab.capstan.dev/cacerts-watcher-dead"
""""true": this istiod never notices new files, as with a watcher that has died."""
POLL_ENV = "LAB_ROOT_POLL_SECONDS"
"""istiod's own 60 s poll of a self-signed root, in seconds of the lab."""
LEADER_ENV = "LAB_LEADER_SECONDS"
"""The 30 s a leader may be silent before another takes over, in seconds of the lab."""


@dataclass(frozen=True)
class Settings:
    """One istiod's settings; durations are those of the lab."""

    tag: str
    rules: Rules
    namespace: str
    pod_name: str
    revision: str
    trust_domain: str
    discovery_selectors: tuple[JSON, ...]
    """meshConfig.discoverySelectors: namespaces that none of them selects do not exist for this istiod; none = all."""
    cluster_id: str
    ca_directory: str
    """As istiod prints it: `etc/cacerts`."""
    ca_directory_given: str
    """As it was given: `./etc/cacerts`."""
    default_ttl: timedelta
    max_ttl: timedelta
    root_ttl: timedelta
    check_interval: timedelta
    grace_percent: int
    jitter: bool
    rsa_bits: int
    poll: timedelta
    leader_ttl: timedelta
    reload_delay: timedelta
    watcher_dead: bool
    trusted_nodes: frozenset[str]
    """CA_TRUSTED_NODE_ACCOUNTS: `namespace/account` of those who may ask for others' leaves (ztunnel)."""

    @classmethod
    def of(cls, container: Container) -> Settings:
        """Read them; raises ValueError for a tag that names no version or a duration that is none."""
        env, tag = container.env, container.image.rpartition(":")[2]
        directory = env.get("ROOT_CA_DIR") or "./etc/cacerts"
        notes = container.pod["metadata"].get("annotations") or {}
        mesh = _mesh(container.path(MESH_FILE))

        def duration(name: str, default: str) -> timedelta:
            text = env.get(name) or default
            negative = text.startswith("-")
            value = timedelta() if text == "0" else parse_duration(text.removeprefix("-"))
            return -value if negative else value

        return cls(
            tag=tag,
            rules=Rules.of(tag, env),
            namespace=env.get("POD_NAMESPACE") or container.namespace,
            pod_name=container.pod_name,
            revision=env.get("REVISION") or "default",
            trust_domain=str(mesh.get("trustDomain") or "cluster.local"),
            discovery_selectors=tuple(mesh.get("discoverySelectors") or ()),
            cluster_id=env.get("CLUSTER_ID") or "Kubernetes",
            ca_directory=directory.removeprefix("./"),
            ca_directory_given=directory,
            default_ttl=duration("DEFAULT_WORKLOAD_CERT_TTL", "24h"),
            max_ttl=duration("MAX_WORKLOAD_CERT_TTL", "2160h"),
            root_ttl=duration("CITADEL_SELF_SIGNED_CA_CERT_TTL", "87600h"),
            check_interval=duration("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "1h"),
            grace_percent=int(env.get("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE") or 20),
            jitter=flag(env, "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", default=True),
            rsa_bits=int(env.get("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE") or 2048),
            poll=timedelta(seconds=float(env.get(POLL_ENV) or 60)),
            leader_ttl=timedelta(seconds=float(env.get(LEADER_ENV) or 30)),
            reload_delay=timedelta(seconds=float(notes.get(RELOAD_DELAY_ANNOTATION) or 0)),
            watcher_dead=notes.get(DEAD_WATCHER_ANNOTATION) == "true",
            trusted_nodes=frozenset(filter(None, (env.get("CA_TRUSTED_NODE_ACCOUNTS") or "").split(","))),
        )

    @property
    def dns_names(self) -> list[str]:
        """The names of the serving certificate: in this order up to 1.19, sorted later."""
        known = ["istiod", "istiod-remote", "istio-pilot"]
        if self.revision != "default":
            known.append(f"istiod-{self.revision}")
        names = [f"{name}.{self.namespace}.svc" for name in known]
        return sorted(names) if self.rules.version >= (1, 20, 0) else names


def _mesh(file: Path) -> JSON:
    with contextlib.suppress(FileNotFoundError):
        config = YAML(typ="safe").load(file.read_text())
        if isinstance(config, dict):
            return config
    return {}
