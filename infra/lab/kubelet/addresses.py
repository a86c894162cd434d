"""Loopback addresses of nodes and pods: one 127.x/16 per lab, so that several labs on one machine never meet.

Linux answers on the whole of 127.0.0.0/8 without configuration, so a pod can have a real address of its own and bind
any port there.
"""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBELET_PORT = 10250  # a real kubelet's


class AddressPool:
    """The addresses of one lab: nodes in 127.x.0.0/24, pods in the rest of 127.x.0.0/16."""

    def __init__(self, second: int | None = None) -> None:
        """Claim 127.`second`.0.0/16, or a free one; the claim lasts until `close`. Raises OSError when none is free."""
        choices = [second] if second is not None else random.Random().sample(range(2, 250), 248)
        last: OSError | None = None
        for choice in choices:
            # The claim is a listening socket on the network's first address: the operating system releases it even
            # when the lab is killed.
            claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                claim.bind((f"127.{choice}.0.1", KUBELET_PORT))
                claim.listen(1)
            except OSError as error:
                claim.close()
                last = error
                continue
            self._claim = claim
            self.second = choice
            break
        else:
            raise last or OSError("no free loopback network")
        self._used: set[str] = set()
        self._walk = self._addresses()

    def node(self, index: int) -> str:
        """The address of the node with this index, from 0 to 200."""
        return f"127.{self.second}.0.{index + 10}"

    def take(self) -> str:
        """A pod address that is not in use; freed ones come round last, so late packets rarely reach a new owner."""
        for address in self._walk:
            if address not in self._used:
                self._used.add(address)
                return address
        raise AssertionError("the walk over the addresses never ends")

    def free(self, address: str) -> None:
        """Give an address back."""
        self._used.discard(address)

    def close(self) -> None:
        """Give the whole network back."""
        self._claim.close()

    def _addresses(self) -> Iterator[str]:
        while True:
            if len(self._used) >= 254 * 254:
                raise OSError(f"all pod addresses of 127.{self.second}.0.0/16 are in use")
            for third in range(1, 255):
                for fourth in range(1, 255):
                    yield f"127.{self.second}.{third}.{fourth}"
