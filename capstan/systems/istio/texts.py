"""The texts of root-cert.pem and cert-chain.pem, byte for byte.

istiod 1.20 to 1.29 takes changed roots without a restart only where one text contains the other, so a text grows at its
end and shrinks to a piece of itself. What stands there is kept as it is: somebody's order, spacing and comments too.
Source: istio/istio pilot/pkg/bootstrap/istio_ca.go (`bytes.Contains`); tests/integration/security/cacert_rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.errors import InvalidPem
from capstan.pki import pem
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate

if TYPE_CHECKING:
    from collections.abc import Sequence


def roots_text(present: str, wanted: Bundle, where: str) -> str:
    """The text of these roots that is nearest to the present one; the present one itself if it holds just them.

    Args:
        present: Text as it stands at the source; empty if there is none.
        wanted: The roots to be there; a certificate more than once in the present text stays so.

    Raises:
        InvalidPem: The present text cannot be read.
        InvalidInput: Nothing is wanted.
    """
    if not present.strip():
        return wanted.pem(trailing_newline=True)
    found = [certificate for certificate, _, _ in _sections(present, where)]
    held = Bundle(tuple(found)).fingerprints
    if held == wanted.fingerprints:
        return present
    # 1. What is to go: the longest piece in which only wanted ones stand, if that holds all of them that are there.
    kept = present
    if held - wanted.fingerprints:
        piece = _piece(present, wanted, where)
        stay = Bundle(tuple(found)).only(wanted.fingerprints)
        complete = piece and Bundle.parse_lenient(piece, where).fingerprints == stay.fingerprints
        kept = piece if complete else stay.pem(trailing_newline=True) if stay.certificates else ""
    # 2. What is new stands at the end.
    return grown(kept, wanted.without(held).certificates)


def grown(text: str, further: Sequence[Certificate]) -> str:
    """A text with certificates at its end; the old text is the beginning of the new one."""
    for certificate in further:
        text = f"{ended(text)}{certificate.pem()}\n"
    return text


def ended(text: str) -> str:
    """The text, with a newline at its end unless it is empty."""
    return text if not text or text.endswith("\n") else text + "\n"


def renewed_text(present: str, root: Certificate, where: str) -> str:
    """A text of the same roots that is not the same text: `root` stands last, and at least twice.

    Proxies that take trust bundles by push sign anew at once when the text changes and not otherwise, so the roots are
    listed once more when only the signer changes (A,B becomes A,B,B). Calling it again changes nothing.
    """
    found = [certificate for certificate, _, _ in _sections(present, where)]
    if found and found[-1] == root and found.count(root) > 1:
        return present
    return grown(present, [root])


def certificates_of(text: str, where: str) -> tuple[Certificate, ...]:
    """Every certificate of a text in order, repetitions included.

    Raises:
        InvalidPem: A section does not decode. InvalidCertificate: One is no certificate.
    """
    return tuple(certificate for certificate, _, _ in _sections(text, where))


def _sections(text: str, where: str) -> list[tuple[Certificate, int, int]]:
    """Certificates with the offsets (in bytes) where each section begins and ends."""
    found = []
    for block in pem.blocks(text.encode()):
        if block.label != pem.CERTIFICATE:
            continue
        if block.data is None:
            raise InvalidPem("certificate section does not decode", where=where, expected="base64 and an END line")
        found.append((Certificate.from_der(block.data, where), block.start, block.end))
    return found


def _piece(text: str, wanted: Bundle, where: str) -> str:
    """The longest run of sections that are all wanted, exactly as it stands; empty if there is none."""
    data = text.encode()
    best = (0, 0, 0)
    run: list[tuple[int, int]] = []
    for certificate, start, end in [*_sections(text, where), (None, 0, 0)]:
        if certificate is not None and certificate.fingerprint in wanted.fingerprints:
            run.append((start, end))
            continue
        if len(run) > best[0]:
            best = (len(run), run[0][0], run[-1][1])
        run = []
    count, start, end = best
    if not count:
        return ""
    for newline in (b"\r\n", b"\n"):
        if data[end:].startswith(newline):
            end += len(newline)
            break
    return data[start:end].decode()
