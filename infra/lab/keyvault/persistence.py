"""What a vault keeps on disk, so that it may be killed at any time: its secrets, and what makes it the same vault.

One JSON file, replaced whole after each change and before the change is answered. It holds secrets in clear text and is
readable by its owner only: this is a lab.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from infra.lab.keyvault.store import Secret, Version

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = 1


@dataclass
class State:
    """The content of the file.

    Attributes:
        port: Where it was served.
        identity_header: The secret of the managed identity: processes that have it in their environment outlive us.
        tokens: Bearer tokens handed out: whoever issues the real ones is not the vault, and does not die with it.
        backup_key: Of the sealed backups.
        secrets: Name -> secret.
    """

    port: int = 0
    identity_header: str = ""
    tokens: set[str] = field(default_factory=set)
    backup_key: str = ""
    secrets: dict[str, Secret] = field(default_factory=dict)


def load(path: Path) -> State:
    """The state in a file; an empty one if there is none.

    Raises:
        ValueError: The file is of another format.
    """
    if not path.exists():
        return State()
    content: dict[str, Any] = json.loads(path.read_text())
    if content.get("format") != _FORMAT:
        msg = f"{path} has format {content.get('format')}, expected {_FORMAT}"
        raise ValueError(msg)
    secrets = {
        item["name"]: Secret(**{**item, "versions": [Version(**version) for version in item["versions"]]})
        for item in content["secrets"]
    }
    return State(content["port"], content["identity_header"], set(content["tokens"]), content["backup_key"], secrets)


def save(path: Path, state: State) -> None:
    """Replace the file in one step."""
    content = {
        "format": _FORMAT,
        "port": state.port,
        "identity_header": state.identity_header,
        "tokens": sorted(state.tokens),
        "backup_key": state.backup_key,
        "secrets": [asdict(secret) for secret in state.secrets.values()],
    }
    temporary = path.with_name(f".{path.name}")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
