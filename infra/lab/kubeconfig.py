"""Read a kubeconfig file: which server, which CA, which identity.

Only what a client of the lab needs: certificates and tokens, embedded or by path. `exec` and `auth-provider` plugins
are refused by name instead of being ignored, because an ignored credential would surface much later as a puzzling
403. Format: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


class KubeconfigError(Exception):
    """A kubeconfig that cannot be used; the message names the file and the missing or unsupported part."""


@dataclass(frozen=True)
class Endpoint:
    """Where an API server is and who we are to it.

    `ca_pem` None means the system's trust store. `token_file` is read again whenever it changes on disk (a projected
    token is rotated in place).
    """

    server: str
    ca_pem: str | None = None
    client_cert_pem: str | None = None
    client_key_pem: str | None = None
    token: str | None = None
    token_file: Path | None = None
    insecure: bool = False
    tls_server_name: str | None = None

    def ssl_context(self) -> ssl.SSLContext:
        """The client side's TLS settings. The private key touches the disk only in a 0600 file that lives for this
        call.
        """
        context = ssl.create_default_context(cadata=self.ca_pem)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert_pem and self.client_key_pem:
            descriptor, name = tempfile.mkstemp(prefix="kubeconfig-", suffix=".pem")
            try:
                os.write(descriptor, (self.client_cert_pem.rstrip("\n") + "\n" + self.client_key_pem).encode())
                context.load_cert_chain(name)
            finally:
                os.close(descriptor)
                Path(name).unlink()
        return context


def load(path: Path | str, context: str | None = None) -> Endpoint:
    """The endpoint of `context` (or of current-context) in the kubeconfig at `path`.

    Raises KubeconfigError when the file lacks the context, cluster or user, or the user needs a credential plugin.
    """
    path = Path(path)
    config: Any = YAML(typ="safe").load(path.read_text())
    if not isinstance(config, dict):
        raise KubeconfigError(f"{path}: not a kubeconfig: expected a mapping at the top, found {type(config).__name__}")
    chosen = _named(path, config, "contexts", "context", context or config.get("current-context") or "")
    cluster = _named(path, config, "clusters", "cluster", chosen.get("cluster", ""))
    user = _named(path, config, "users", "user", chosen.get("user", "")) if chosen.get("user") else {}
    for plugin in ("exec", "auth-provider"):
        if plugin in user:
            raise KubeconfigError(
                f"{path}: user {chosen['user']!r} needs the credential plugin {plugin!r}, which the lab does not run"
            )
    if "server" not in cluster:
        raise KubeconfigError(f"{path}: cluster {chosen.get('cluster')!r} has no server")
    token_file = user.get("tokenFile")
    return Endpoint(
        server=cluster["server"].rstrip("/"),
        ca_pem=_data_or_file(path, cluster, "certificate-authority"),
        client_cert_pem=_data_or_file(path, user, "client-certificate"),
        client_key_pem=_data_or_file(path, user, "client-key"),
        token=user.get("token"),
        token_file=(path.parent / token_file) if token_file else None,
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        tls_server_name=cluster.get("tls-server-name"),
    )


def _named(path: Path, config: dict[str, Any], plural: str, singular: str, name: str) -> dict[str, Any]:
    for entry in config.get(plural) or []:
        if entry.get("name") == name:
            return dict(entry.get(singular) or {})
    raise KubeconfigError(
        f"{path}: no {singular} named {name!r} among {[e.get('name') for e in config.get(plural) or []]}"
    )


def _data_or_file(path: Path, section: dict[str, Any], key: str) -> str | None:
    """`key-data` (base64) wins over `key` (a path, relative to the kubeconfig), as in client-go."""
    if data := section.get(f"{key}-data"):
        return base64.b64decode(data).decode()
    if name := section.get(key):
        return (path.parent / str(name)).read_text()
    return None
