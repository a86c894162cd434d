"""How the readers of a trust bundle see its text.

Two programs read a Linkerd bundle, and they differ: the identity controller and `linkerd check` (Go, encoding/pem in a
loop that ends at the first surprise) and the proxy (rustls, which skips what it does not know). A text is safe to
write only if both read the same certificates from it, so this module reads as the strict one does and says what it saw.

Rules: Linkerd pkg/tls, DecodePEMCertificates over Go's encoding/pem; RFC 7468 sections 2 and 3.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum

CERTIFICATE = "CERTIFICATE"
_BEGIN = re.compile(rb"(?m)^-----BEGIN ([^\r\n]*?)-----[ \t]*\r?$")
_HEADER = re.compile(rb"^[^\n:]*:.*$")
_SPACE = b" \t\r\n"


class Reading(StrEnum):
    """What the strict reader does when it meets a thing."""

    OK = "ok"
    SILENTLY_CUT = "silently cut"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark about a PEM text.

    Attributes:
        reading: How the strict reader treats it.
        line: 1-based line number where it stands.
        message: What it is and what follows from it.
    """

    reading: Reading
    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message} ({self.reading})"


@dataclass(frozen=True, slots=True)
class Block:
    """One PEM section: its label, decoded bytes (None when they do not decode), and place in the text."""

    label: str
    data: bytes | None
    start: int
    end: int
    headers: bool


def line_of(text: bytes, offset: int) -> int:
    """1-based line number of a byte offset."""
    return text.count(b"\n", 0, offset) + 1


def blocks(text: bytes) -> tuple[Block, ...]:
    """All PEM sections, well-formed or not, in order. A BEGIN without its END reaches to the end of the text."""
    found = []
    position = 0
    while match := _BEGIN.search(text, position):
        label = match[1]
        ending = re.compile(rb"(?m)^-----END " + re.escape(label) + rb"-----(?=[ \t]*\r?$)")
        end = ending.search(text, match.end())
        following = _BEGIN.search(text, match.end())
        if end is None or (following is not None and following.start() < end.start()):
            stop = following.start() if following else len(text)
            found.append(Block(label.decode("latin-1"), None, match.start(), stop, headers=False))
            position = stop
            continue
        body = text[match.end() : end.start()]
        lines = body.strip(_SPACE).splitlines()
        headers = bool(lines) and _HEADER.match(lines[0]) is not None
        content = b"".join(line for line in lines if not _HEADER.match(line)) if headers else body
        found.append(Block(label.decode("latin-1"), _decode(content), match.start(), end.end(), headers))
        position = end.end()
    return tuple(found)


def _decode(content: bytes) -> bytes | None:
    try:
        return base64.b64decode(content.translate(None, _SPACE), validate=True)
    except binascii.Error:
        return None


def lint(text: bytes) -> tuple[Finding, ...]:
    """Say how the strict reader treats `text`, in the order it meets things.

    Only what the PEM layer can see; whether the decoded bytes are certificates is the caller's to find out.
    """
    findings: list[Finding] = []
    sections = blocks(text)
    if not any(section.label == CERTIFICATE for section in sections):
        findings.append(Finding(Reading.FATAL, 1, "no certificate found"))
    if text.startswith(b"\xef\xbb\xbf"):
        findings.append(Finding(Reading.SILENTLY_CUT, 1, "byte order mark hides the first BEGIN line"))
    position = 0
    for section in sections:
        line = line_of(text, section.start)
        between = text[position : section.start]
        if b"-----" in between:
            message = "a PEM boundary that bounds no section: whatever it was meant to hold is dropped"
            findings.append(Finding(Reading.SILENTLY_CUT, line_of(text, position), message))
        elif between.strip(_SPACE):
            findings.append(Finding(Reading.OK, line_of(text, position), "text before a certificate is skipped"))
        elif position and len(between.splitlines()) > 1:
            findings.append(Finding(Reading.OK, line, "blank line between certificates"))
        if section.data is None:
            last = section is sections[-1]
            reading = Reading.FATAL if last else Reading.SILENTLY_CUT
            findings.append(Finding(reading, line, f"{section.label} section is truncated or not base64"))
        elif section.label != CERTIFICATE:
            rest = len([s for s in sections if s.start > section.start and s.label == CERTIFICATE])
            message = f"{section.label} section ends the reading; {rest} certificates after it are dropped"
            findings.append(Finding(Reading.SILENTLY_CUT, line, message))
        elif section.headers:
            findings.append(
                Finding(Reading.FATAL, line, "headers inside a certificate (RFC 7468 section 2 forbids them)")
            )
        position = section.end
    findings.extend(_trailing(text, position if sections else 0) if sections else ())
    if b"\r" in text:
        findings.append(Finding(Reading.OK, 1, "carriage returns at line ends"))
    return tuple(findings)


def _trailing(text: bytes, end: int) -> tuple[Finding, ...]:
    """Anything after the last END line but one newline makes the reader look for another certificate, and fail."""
    tail = text[end:]
    if tail in (b"", b"\n", b"\r\n"):
        return ()
    line = line_of(text, end) + 1
    if tail.strip(_SPACE):
        return (Finding(Reading.FATAL, line, "text after the last certificate"),)
    what = "trailing blank line" if not tail.strip(b"\r\n") else "trailing spaces"
    return (Finding(Reading.FATAL, line, what),)
