"""The second verifier: OpenSSL's X509_verify_cert, in process through pyOpenSSL.

It picks a root by name and key identifier, as most TLS stacks do, so it sees the failures that a search through all
candidates hides (two roots of one name without identifiers). It is not told a name or a purpose; both are checked by
the caller on the chain it found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from OpenSSL import crypto

from capstan.pki.clock import require_aware
from capstan.pki.inspect import Certificate
from capstan.pki.verify.answer import Answer, Relaxation, accepted, refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

NAME = "OpenSSL"


def judge(
    certificate: Certificate,
    intermediates: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    *,
    relax: frozenset[Relaxation],
) -> Answer:
    """Verify a leaf or an issuer against trust anchors, which need not be self-signed (as for rustls and Go).

    With nothing relaxed, X509_STRICT also applies RFC 5280's rules about identifiers and extensions.
    """
    store = crypto.X509Store()
    # set_time reads the calendar fields as UTC, whatever the zone.
    store.set_time(require_aware(at))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | (0 if relax else crypto.X509StoreFlags.X509_STRICT))
    try:
        for root in roots:
            store.add_cert(crypto.X509.from_cryptography(root.raw))
        below = [crypto.X509.from_cryptography(each.raw) for each in intermediates]
        context = crypto.X509StoreContext(store, crypto.X509.from_cryptography(certificate.raw), below)
        chain = context.get_verified_chain()
    except crypto.X509StoreContextError as e:
        return refused(NAME, str(e))
    except crypto.Error as e:  # OpenSSL cannot even load what cryptography could
        return refused(NAME, f"cannot be loaded: {e}")
    return accepted(NAME, tuple(Certificate(each.to_cryptography()) for each in chain))
