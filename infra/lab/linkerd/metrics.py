"""The Prometheus text that linkerd-identity and the proxy expose, with the names of their versions."""

from __future__ import annotations

import re
from collections import Counter

from infra.lab.linkerd.wire import SERVICE

_BUCKETS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf")
_LABELS = f'grpc_method="Certify",grpc_service="{SERVICE}",grpc_type="unary"'

# First edge release of each minor version (Linkerd's release notes): no stable artifacts have been published since
# 2.15, so an edge number is what current installations carry.
_EDGES = {(24, 2): 15, (24, 8): 16, (24, 11): 17, (25, 4): 18, (25, 10): 19, (26, 5): 20}


def minor_version(version: str) -> int:
    """Linkerd 2.x: the x of `stable-2.14.10`, `2.18`, `version-2.20` or `edge-26.8.3`.

    Raises:
        ValueError: If the text is no Linkerd version.
    """
    if found := re.fullmatch(r"edge-(\d+)\.(\d+)\.\d+", version):
        moment = (int(found[1]), int(found[2]))
        return max((minor for start, minor in _EDGES.items() if start <= moment), default=14)
    if found := re.fullmatch(r"(?:[a-z]+-)?2\.(\d+)(?:\.\d+)?", version):
        return int(found[1])
    raise ValueError(f"not a Linkerd version: {version!r} (expected e.g. edge-26.8.3 or stable-2.14.10)")


class GrpcMetrics:
    """Counters of the Certify method; nothing is exposed before the first call (trace 01)."""

    def __init__(self) -> None:
        self._started = 0
        self._handled: Counter[str] = Counter()
        self._seconds: list[float] = []

    def started(self) -> None:
        """A call has arrived."""
        self._started += 1

    def handled(self, code: str, seconds: float) -> None:
        """A call has ended with `code` (Go's name of it, e.g. FailedPrecondition)."""
        self._handled[code] += 1
        self._seconds.append(seconds)

    def render(self) -> list[str]:
        """Sample lines, as the recorded ones of traces 04 and 05."""
        if not self._started:
            return []
        total = len(self._seconds)
        lines = [
            f'grpc_server_handled_total{{grpc_code="{code}",{_LABELS}}} {count}'
            for code, count in sorted(self._handled.items())
        ]
        for bound in _BUCKETS:
            below = sum(1 for seconds in self._seconds if bound == "+Inf" or seconds <= float(bound))
            lines.append(f'grpc_server_handling_seconds_bucket{{{_LABELS},le="{bound}"}} {below}')
        lines += [
            f"grpc_server_handling_seconds_sum{{{_LABELS}}} {sum(self._seconds):.9f}",
            f"grpc_server_handling_seconds_count{{{_LABELS}}} {total}",
            f"grpc_server_msg_received_total{{{_LABELS}}} {self._started}",
            f"grpc_server_msg_sent_total{{{_LABELS}}} {self._handled['OK']}",
            f"grpc_server_started_total{{{_LABELS}}} {self._started}",
        ]
        return lines


def proxy_metrics(version: str, *, expires: float, refreshed: float, ok: int, failed: int) -> list[str]:
    """The proxy's own certificate metrics: three generations of names.

    Args:
        expires: End of the leaf, Unix seconds; 0 without one.
        refreshed: When it was last renewed, Unix seconds.
        ok: Successful renewals.
        failed: Failed renewals.
    """
    minor = minor_version(version)
    if minor <= 14:
        return [
            f"identity_cert_expiration_timestamp_seconds {expires:.0f}",
            f"identity_cert_refresh_count {ok}",
        ]
    prefix = "identity_cert" if minor == 15 else "control_identity_cert"
    return [
        f"{prefix}_expiration_timestamp_seconds {expires:.0f}",
        f"{prefix}_refresh_timestamp_seconds {refreshed:.3f}",
        f'{prefix}_refreshes_total{{result="ok"}} {ok}',
        f'{prefix}_refreshes_total{{result="error"}} {failed}',
    ]
