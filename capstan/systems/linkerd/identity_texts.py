"""What linkerd-identity writes: lines of its log, samples of its metrics, the Date of its answers. No I/O."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

_TTL: Final = re.compile(r"^issuer_cert_ttl_seconds(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)
_HANDLED: Final = re.compile(r"^grpc_server_handled_total\{([^}]*)\}\s+(\S+)", re.MULTILINE)
_CODE: Final = re.compile(r'grpc_code="([^"]*)"')
_TAKEN: Final = "Updated identity issuer"
_SKIPPED: Final = "Skipping issuer update"
# logrus: time="..." level=fatal msg="..." (-log-format=plain), or a JSON object with the same names.
_FATAL: Final = re.compile(r'level=fatal|"level":\s*"fatal"')
_MESSAGE: Final = re.compile(r'(?:msg=|"msg":\s*)"((?:[^"\\]|\\.)*)"')


class Word(StrEnum):
    """What a replica said of the issuer since it was written."""

    TAKEN = "taken"
    SKIPPED = "skipped"
    NOTHING = "nothing"


def last_word(log: str) -> tuple[Word, str]:
    """What the last line about a reload says, and its message."""
    for line in reversed(log.splitlines()):
        if _TAKEN in line:
            return Word.TAKEN, message_of(line)
        if _SKIPPED in line:
            return Word.SKIPPED, message_of(line)
    return Word.NOTHING, ""


def message_of(line: str) -> str:
    """The message of a line of identity's log, or the line."""
    found = _MESSAGE.search(line)
    return found[1].replace('\\"', '"').replace("\\n", " ") if found else line.strip()


def issuer_end(metrics: str, at: datetime) -> datetime | None:
    """When the issuer in memory ends, by `issuer_cert_ttl_seconds` (2.18 and later) and the replica's time."""
    found = _TTL.search(metrics)
    if found is None:
        return None
    try:
        return at + timedelta(seconds=float(found[1]))
    except (ValueError, OverflowError):
        return None


def certificates_signed(metrics: str) -> tuple[int | None, int]:
    """Certify calls that were answered with a certificate, and that failed for a reason of identity's own.

    Both by `grpc_server_handled_total`; None where nobody has asked yet.
    """
    signed, failed, found = 0, 0, False
    for labels, value in _HANDLED.findall(metrics):
        code = _CODE.search(labels)
        if 'grpc_method="Certify"' not in labels or code is None:
            continue
        found = True
        if code[1] == "OK":
            signed += int(float(value))
        elif code[1] in ("Internal", "Unknown"):
            failed += int(float(value))
    return (signed if found else None), failed


def clock_difference(date: str, before: datetime, after: datetime) -> timedelta:
    """How far the clock behind a Date header is ahead (or, negative, behind) of ours, for certain.

    Args:
        date: RFC 9110 section 6.6.1; it has whole seconds, so that the moment may be up to one second later.
        before, after: Our time when the question was put, and when the answer was there.
    """
    try:
        stated = parsedate_to_datetime(date)
    except ValueError:
        return timedelta()
    if stated.tzinfo is None:
        return timedelta()
    if stated > after:
        return stated - after
    if stated + timedelta(seconds=1) < before:
        return stated + timedelta(seconds=1) - before
    return timedelta()


def fatal_words(log: str) -> str:
    """The message with which identity gave up; empty if there is none."""
    return next((message_of(line) for line in reversed(log.splitlines()) if _FATAL.search(line)), "")
