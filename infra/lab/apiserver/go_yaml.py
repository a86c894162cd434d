"""What Go's YAML library says of a document it cannot read; both libraries descend from libyaml."""

from __future__ import annotations

import re

from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scanner import ScannerError

# start of a complaint as this library words it, the context it is made in -> the other library's words
_WORDS = (
    ("mapping values are not allowed", "", "mapping values are not allowed in this context"),
    ("found character", "", "found character that cannot start any token"),
    ("expected <block end>", "block mapping", "did not find expected key"),
    ("expected <block end>", "", "did not find expected '-' indicator"),
    ("expected ',' or '}'", "", "did not find expected ',' or '}'"),
    ("expected ',' or ']'", "", "did not find expected ',' or ']'"),
    ("expected the node content", "", "did not find expected node content"),
)


def complaint(error: YAMLError) -> str:
    """The words after ``yaml: ``, with the line where Go's library tells it (never for the first)."""
    if not isinstance(error, MarkedYAMLError) or not error.problem:
        return re.sub(r"\s+", " ", str(error)).strip()
    alias = re.match(r"found undefined alias '?([^']*)", error.problem)
    if alias:
        return f"unknown anchor '{alias[1]}' referenced"
    context = error.context or ""
    found = (said for start, where, said in _WORDS if error.problem.startswith(start) and where in context)
    words = next(found, error.problem)
    line = next((mark.line for mark in (error.context_mark, error.problem_mark) if mark and mark.line), 0)
    if line and isinstance(error, ScannerError):
        line += 1
    return f"line {line}: {words}" if line else words
