"""YAML bodies and answers."""

from __future__ import annotations

import io
import json
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from . import go_yaml


def to_json(body: bytes) -> bytes:
    """A YAML document as JSON. Raises ValueError, in the words of Go's library, when it is none."""
    try:
        return json.dumps(YAML(typ="safe", pure=True).load(body)).encode()
    except YAMLError as error:
        raise ValueError(f"yaml: {go_yaml.complaint(error)}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"yaml: {error}") from None


def dump(obj: Any) -> bytes:
    out = io.BytesIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.dump(obj, out)
    return out.getvalue()
