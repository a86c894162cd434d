"""The mesh configuration, in what bears on whom proxies trust.

    ConfigMap istio, istio-REVISION      of each revision
    ConfigMap named SHARED_MESH_CONFIG   merged into it, where that variable of istiod is set (the AKS add-on's
                                         istio-shared-configmap-REVISION, in which its users write)

`caCertificates` are roots of other CAs. With ISTIO_MULTIROOT_MESH istiod pushes them, beside its own roots, to proxies
with PROXY_CONFIG_XDS_AGENT; they are neither in the CA's files nor in istio-ca-root-cert, and stay when the CA's roots
change.

Source: istio/istio pilot/pkg/bootstrap/mesh.go (getMeshConfigMapName, getConfigurationSources), pilot/pkg/trustbundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from capstan.cluster.resources import CONFIG_MAPS
from capstan.errors import CapstanError
from capstan.pki.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from capstan.cluster.client import Cluster
    from capstan.pki.inspect import Certificate

SHARED: Final = "SHARED_MESH_CONFIG"
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"
_DEFAULT_REVISION: Final = "default"


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """Of all revisions of one control plane, which share their CA.

    Attributes:
        trust_domain: `cluster.local` unless set.
        added_roots: Those of `caCertificates` that are written out; what a `spiffeBundleUrl` brings is not known.
    """

    trust_domain: str
    added_roots: Bundle


def read_mesh_config(
    cluster: Cluster, namespace: str, revisions: Iterable[tuple[str, Mapping[str, str]]]
) -> MeshConfig:  # fmt: skip
    """Read it.

    Args:
        revisions: Name of each, and the environment of its istiod.

    Raises:
        CapstanError: The API cannot be asked; that there is no ConfigMap, or none that can be read, is an answer.
    """
    domain = ""
    added: list[Certificate] = []
    for name in dict.fromkeys(name for revision in revisions for name in _names(*revision)):
        mesh = _parsed(((cluster.find(CONFIG_MAPS, name, namespace) or {}).get("data") or {}).get("mesh", ""))
        domain = domain or str(mesh.get("trustDomain") or "")
        added += _roots(mesh.get("caCertificates"), f"configmap {namespace}/{name}")
    return MeshConfig(domain or DEFAULT_TRUST_DOMAIN, Bundle(tuple(added)))


def _names(revision: str, env: Mapping[str, str]) -> Iterator[str]:
    yield "istio" if revision == _DEFAULT_REVISION else f"istio-{revision}"
    if env.get(SHARED):
        yield env[SHARED]


def _parsed(text: object) -> dict[str, Any]:
    try:
        value = YAML(typ="safe").load(str(text))
    except YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _roots(entries: object, where: str) -> Iterator[Certificate]:
    for entry in entries if isinstance(entries, list) else ():
        text = str(entry.get("pem") or "") if isinstance(entry, dict) else ""
        try:
            yield from Bundle.parse_lenient(text, where) if text else ()
        except CapstanError:
            continue  # istiod takes the whole change or nothing of it: what is no certificate reaches no proxy
