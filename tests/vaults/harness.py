"""What the vault tests share: a fast clock, a counting mint, a crash on demand."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from azure.core.credentials import AccessToken
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from capstan.vaults import Material, Vault

if TYPE_CHECKING:
    from collections.abc import Callable

SPEED = 25.0
"""How much faster than real the endpoint's clock runs: its times have whole seconds, which tests would wait out."""
_STARTED = time.time()


def lab_clock() -> float:
    """Seconds since the epoch, on a clock that runs fast."""
    return _STARTED + (time.time() - _STARTED) * SPEED


def lab_sleep(seconds: float) -> None:
    """Wait, on the same clock."""
    time.sleep(seconds / SPEED)


class StaticCredential:
    """A bearer token known in advance."""

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        return AccessToken("lab-token", int(time.time()) + 3600)


class _Killed(Exception):
    """Stands for the death of the process at this point."""


class _CrashAfterStore:
    """Ends a call between storing and answering, through the audit event the product raises there."""

    armed = False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.armed and event == "capstan.step" and args[0].startswith("vault.store/") and args[1] == "end":
            self.armed = False
            raise _Killed


_crash = _CrashAfterStore()
sys.addaudithook(_crash)


@dataclass
class Minting:
    """Mints keys and counts them."""

    made: list[Material] = field(default_factory=list)

    def __call__(self) -> Material:
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.made.append(Material(private_key_pem=pem.decode("ascii")))
        return self.made[-1]


@dataclass
class Harness:
    """One kind of vault.

    Attributes:
        open: Another handle on the same vault, as another process would have.
    """

    open: Callable[[], Vault]

    def crash_after_store(self, call: Callable[[], object]) -> None:
        """Run `call`, which dies between storing and answering."""
        _crash.armed = True
        with pytest.raises(_Killed):
            call()
