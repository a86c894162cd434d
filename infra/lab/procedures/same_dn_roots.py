"""Root rotation in the right order, with two roots of one name and no key identifiers.

This is what comes of running the Makefile of istio/istio's tools/certs twice without SKI and AKI: every root is
`O=Istio,CN=Root CA`. Trust both, switch the intermediate, trust the new one alone: each phase is right, and still a
verifier that has both roots takes the first that bears the name, and finds the signature wrong.

For a lab of `--system istio --ca plugin --no-ski --multiroot`. With --key-identifiers the new certificates carry SKI
and AKI; on a lab without --no-ski that is the counter-check: nothing is dropped, though the names are the same.
"""

from __future__ import annotations

import base64
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import NameOID

from infra.lab.aks import hierarchy
from infra.lab.procedures import judged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.lab.procedures.judged import Script

NAMESPACE = "istio-system"
CACERTS = f"/api/v1/namespaces/{NAMESPACE}/secrets/cacerts"


async def run(script: Script) -> None:
    """The three phases, with a leaf's life between them."""
    secret = await script.client.get(CACERTS)
    held = {file: base64.b64decode(secret["data"][file]).decode() for file in hierarchy.FILES}
    old_root = x509.load_pem_x509_certificate(held[hierarchy.ROOT_CERT].encode())
    (name,) = old_root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    identifiers: bool = script.arguments.key_identifiers
    new = hierarchy.mint("B", now=datetime.now(UTC), identifiers=identifiers, root_name=str(name.value))
    both = held[hierarchy.ROOT_CERT] + new.root.certificate_pem
    await phase(script, "trust both roots", {**held, hierarchy.ROOT_CERT: both})
    await script.wait_a_leaf_life()
    await phase(script, "sign with the new intermediate", new.texts(roots=both))
    await script.wait_a_leaf_life()
    await phase(script, "trust the new root alone", new.texts())


async def phase(script: Script, what: str, texts: Mapping[str, str]) -> None:
    """Write all four at once, and wait until istiod has them."""
    data = {file: base64.b64encode(text.encode()).decode() for file, text in texts.items()}
    await script.step(f"kubectl patch secret cacerts: {what}", script.client.patch(CACERTS, {"data": data}))
    roots = texts[hierarchy.ROOT_CERT]
    await script.step("wait until istiod publishes these roots", script.published(NAMESPACE, roots))


if __name__ == "__main__":
    parser = judged.parser(__doc__ or "")
    parser.add_argument("--key-identifiers", action="store_true", help="SKI and AKI in the new certificates")
    sys.exit(judged.main("same-dn-roots", run, parser.parse_args()))
