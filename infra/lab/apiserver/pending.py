"""Stand-ins until the modules for apply, validation and protobuf are there; goes away with the last of them."""

# mypy: ignore-errors
from types import SimpleNamespace

try:
    from . import apply
except ImportError:
    apply = SimpleNamespace(track_update=lambda *_: None)
try:
    from . import validation
except ImportError:
    validation = SimpleNamespace(validate=lambda *_: None)
try:
    from . import protobuf
except ImportError:
    protobuf = SimpleNamespace()
