"""The TLS side of istiod: contexts for its gRPC port and its webhooks, replaced whenever its certificate is.

The certificate authorities for client certificates are those of the start and stay them: a reload does not touch them
(pilot/pkg/bootstrap/server.go builds the pool once). A self-signed istiod presents its leaf alone (trace 01); OpenSSL
would add the root to it as soon as it knows one to check clients with, so here it then asks for no client certificate.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from infra.lab.istio import golog
from infra.lab.istio.istiod import bundle as bundles

if TYPE_CHECKING:
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority


class Serving:
    """The contexts in use; None before the first certificate.

    Args:
        scratch: Directory in which a key may be for the moment OpenSSL takes to read it.
    """

    def __init__(self, authority: Authority, scratch: Path, out: Log) -> None:
        self.grpc: ssl.SSLContext | None = None
        self.webhook: ssl.SSLContext | None = None
        self._authority = authority
        self._client_roots = authority.bundle.root_text
        self._scratch = scratch
        self._out = out

    def load(self) -> None:
        """Take over the certificate that the authority serves with now, and print it."""
        served = self._authority.served
        if served is None:
            return
        for certificate in bundles.certificates(served.chain_pem):
            self._out.info(golog.certificate_line(certificate))
        text = served.key_pem + served.chain_pem
        grpc, webhook = self._context(text), self._context(text)
        grpc.set_alpn_protocols(["h2"])
        if self._authority.bundle.chain_pem:
            grpc.load_verify_locations(cadata=self._client_roots)
            grpc.verify_mode = ssl.CERT_OPTIONAL
        webhook.set_alpn_protocols(["http/1.1"])
        self._out.info("Istiod certificates are reloaded")
        self.grpc, self.webhook = grpc, webhook

    def announce_clients(self) -> None:
        """Print how many authorities client certificates are checked against."""
        count = len(bundles.certificates(self._client_roots.encode()))
        domain = self._authority.settings.trust_domain
        self._out.info(f"Added {count} certs to trust domain {domain} in peer cert verifier", "spiffe")

    def _context(self, text: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        handle, path = tempfile.mkstemp(dir=self._scratch)  # the ssl module reads keys from files only
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            context.load_cert_chain(path)
        finally:
            Path(path).unlink()
        return context
