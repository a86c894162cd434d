"""A new key for a self-signed root, in place: what those do who take root-transition.sh and give it a new key.

`istio-ca-secret` gets a new self-signed certificate and a new key in one patch. istiod adopts them at its next check;
every leaf it signs from then on chains to a root that nobody else trusts.
"""

from __future__ import annotations

import base64
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.lab.istio.hierarchy import mint_root
from infra.lab.procedures import judged

if TYPE_CHECKING:
    from infra.lab.procedures.judged import Script

NAMESPACE = "istio-system"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/istio-ca-secret"


async def run(script: Script) -> None:
    """Patch, and wait until istiod has adopted it."""
    root = mint_root(now=datetime.now(UTC), common_name="cluster.local")
    data = {"ca-cert.pem": root.certificate_pem, "ca-key.pem": root.key_pem}
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    await script.step(
        "kubectl patch secret istio-ca-secret: a new certificate and a new key",
        script.client.patch(SECRET, {"data": encoded}),
    )
    await script.step("wait until istiod publishes the new root", script.published(NAMESPACE, root.certificate_pem))


if __name__ == "__main__":
    sys.exit(judged.main("in-place-new-key", run, judged.parser(__doc__ or "").parse_args()))
