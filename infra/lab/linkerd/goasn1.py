"""What Go's encoding/asn1 says of bytes that are not the structure they should be: the outermost layer of it.

That is where keys, requests and certificates in the wrong encoding (PEM for DER, text, a cut file) are found out; what
is wrong further inside is rarer, and gets the error's kind without its details.
"""

from __future__ import annotations

_PARAMETERS = (
    "{optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil>"
    " stringType:0 timeType:0 set:false omitEmpty:false}"
)
_SEQUENCE = 16


def sequence_error(der: bytes, name: str) -> str:
    """Why `der` is not one SEQUENCE; "" if it is.

    Args:
        name: The Go type that it was to be, e.g. `certificateRequest`.
    """
    if not der:
        return "asn1: syntax error: sequence truncated"
    tag = der[0]
    if tag & 0x1F == 0x1F:
        return "asn1: structure error: base 128 integer too large"
    if len(der) < 2:
        return "asn1: syntax error: truncated tag or length"
    length, offset = der[1], 2
    if length & 0x80:
        count = length & 0x7F
        if count == 0:
            return "asn1: syntax error: indefinite length found (not DER)"
        if len(der) < offset + count:
            return "asn1: syntax error: truncated tag or length"
        if count > 4:
            return "asn1: structure error: length too large"
        length, offset = int.from_bytes(der[offset : offset + count], "big"), offset + count
        if der[2] == 0:
            return "asn1: structure error: superfluous leading zeros in length"
        if length < 0x80:
            return "asn1: structure error: non-minimal length"
    compound = "true" if tag & 0x20 else "false"
    if tag != 0x30:
        found = f"{{class:{tag >> 6} tag:{tag & 0x1F} length:{length} isCompound:{compound}}}"
        return f"asn1: structure error: tags don't match ({_SEQUENCE} vs {found}) {_PARAMETERS} {name} @{offset}"
    if offset + length > len(der):
        return "asn1: syntax error: data truncated"
    return "asn1: syntax error: trailing data" if offset + length < len(der) else ""
