"""A rotation as one picture: phases, decisions, restarts, who trusts what, and handshakes, over time.

SVG 1.1, 900 pixels wide, readable on light and dark: it brings its own background and follows the viewer's colour
scheme. A line or bar has the colour of the phase that moves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from capstan.evidence.story import story

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from capstan.evidence.chain import Entry
    from capstan.evidence.story import Counted, Decided, Span, Story

WIDTH: Final = 900
LEFT: Final = 132  # where time begins; lane names stand left of it
RIGHT: Final = 878
CHARACTER: Final = 6.3  # width of an average character of 12 pixels, measured generously
ROW: Final = 22

_COLOURS: Final = {"prepare": "c0", "trust": "c1", "issue": "c2", "distrust": "c3"}
_STEPS: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
)

_STYLE: Final = """
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328;
paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
.t{font-size:15px;font-weight:600}.m{fill:#59636e}.e{text-anchor:end}.n{text-anchor:middle}
.bg{fill:#fff;stroke:#d1d9e0}.g{stroke:#d8dee4;stroke-width:1}.w{stroke:#59636e;stroke-dasharray:3 3;stroke-width:1}
.c0{fill:#6e7781}.c1{fill:#0969da}.c2{fill:#8250df}.c3{fill:#bc4c00}.bad{fill:#cf222e}.ok{fill:#1a7f37}
.l{fill:none;stroke-width:2;stroke-linejoin:round}.l1{stroke:#0969da}.l2{stroke:#8250df}.l3{stroke:#bc4c00}
.ask{fill:#fff;fill-opacity:.55}.area{fill:#0969da;fill-opacity:.25}
@media (prefers-color-scheme:dark){text{fill:#e6edf3;stroke:#1b1d21}.m{fill:#9198a1}.bg{fill:#1b1d21;stroke:#3d444d}
.g{stroke:#343a42}.w{stroke:#9198a1}.c0{fill:#9198a1}.c1{fill:#4493f8}.c2{fill:#ab7df8}.c3{fill:#f0883e}.bad{fill:#f85149}
.ok{fill:#3fb950}.l1{stroke:#4493f8}.l2{stroke:#ab7df8}.l3{stroke:#f0883e}.ask{fill:#1b1d21}.area{fill:#4493f8}}
"""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Time to pixels."""

    start: datetime
    end: datetime

    def x(self, at: datetime) -> float:
        whole = (self.end - self.start).total_seconds()
        return round(LEFT + (RIGHT - LEFT) * (at - self.start).total_seconds() / whole, 1)

    def ticks(self) -> Iterator[datetime]:
        """Round times, at most nine."""
        whole = (self.end - self.start).total_seconds()
        step = next((step for step in _STEPS if whole / step <= 8), _STEPS[-1] * (1 + int(whole / _STEPS[-1] / 8)))
        first = -(-self.start.timestamp() // step) * step
        while first <= self.end.timestamp():
            yield datetime.fromtimestamp(first, UTC)
            first += step

    def label(self, at: datetime) -> str:
        whole = self.end - self.start
        if whole > timedelta(days=4):
            return f"{at:%b %d}"
        if whole > timedelta(hours=12):
            return f"{at:%b %d %H:%M}"
        return f"{at:%H:%M}" if whole > timedelta(minutes=20) else f"{at:%H:%M:%S}"


def draw(entries: Sequence[Entry]) -> str:
    """Draw an account, finished or not, as SVG.

    Raises:
        InvalidInput: It has no entry.
    """
    told = story(entries)
    scale = _Scale(told.start, max(told.end, told.start + timedelta(seconds=1)))
    lanes: list[Callable[[Story, _Scale, int], tuple[list[str], int]]] = [_phase_lane, _decision_lane]
    if told.looks:
        lanes.append(_peer_lane)
    if told.restarts:
        lanes.append(_restart_lane)
    if len(told.counted) > 1:
        lanes.append(_handshake_lane)
    y = 48
    body: list[str] = []
    for lane in lanes:
        drawn, height = lane(told, scale, y)
        body += drawn
        y += height
    grid = [_line(scale.x(at), 40, scale.x(at), y, "g") for at in scale.ticks()]
    labels = list(_axis(scale, y + 16))
    marks = [_line(scale.x(one.at), 40, scale.x(one.at), y, "w") for one in told.decided]
    height = y + 30
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            f' role="img" aria-label="{escape(_title(told))}">',
            f"<title>{escape(_title(told))}</title><style>{_STYLE}</style>",
            '<defs><pattern id="h" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect class="ask" width="3" height="6"/></pattern></defs>',
            f'<rect class="bg" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
            _text(16, 27, _title(told), "t"),
            *grid,
            *marks,
            *body,
            *labels,
            "</svg>",
        )
    )


def _title(told: Story) -> str:
    who = f"{told.domain}, rotation {told.rotation}" if told.domain else f"rotation {told.rotation}"
    return f"{who}: {told.outcome or 'under way'}, {_duration(told.end - told.start)}"


def _phase_lane(told: Story, scale: _Scale, y: int) -> tuple[list[str], int]:
    """A row a phase: its bar, hatched while it waits for a person, thin while no process works on it."""
    drawn: list[str] = []
    for row, phase in enumerate(told.phases):
        top = y + row * ROW
        end = phase.end or told.end
        left, right = scale.x(phase.start), max(scale.x(end), scale.x(phase.start) + 2)
        colour = _COLOURS.get(phase.name.partition(" ")[0], "c0")
        drawn.append(_text(LEFT - 10, top + 14, phase.name, "e"))
        drawn.append(_rect(left, top + 4, right - left, 13, colour))
        for span in told.asking:
            if span.name == phase.name.partition(" ")[0]:
                start, stop = scale.x(max(span.start, phase.start)), scale.x(min(span.end or told.end, end))
                if stop - start > 1:
                    drawn.append(
                        f'<rect x="{start}" y="{top + 4}" width="{stop - start:.1f}" height="13" fill="url(#h)"/>'
                    )
        for span in told.away:
            start, stop = scale.x(max(span.start, phase.start)), scale.x(min(span.end or told.end, end))
            if stop - start > 1 and not any(_within(span, one) for one in told.asking):
                drawn += [_rect(start, edge, stop - start, 4, "ask") for edge in (top + 4, top + 13)]
        said = _duration(end - phase.start) + ("" if phase.end else " so far")
        fits = right + 6 + CHARACTER * len(said) < RIGHT
        drawn.append(_text(right + 6 if fits else left - 6, top + 14, said, "m" if fits else "m e"))
    if told.asking or told.away:
        top = y + len(told.phases) * ROW
        drawn.append(
            _text(LEFT, top + 14, "hatched: a person is asked; thin: no process, the run waits in Prefect", "m")
        )
        return drawn, (len(told.phases) + 1) * ROW + 8
    return drawn, len(told.phases) * ROW + 8


def _within(span: Span, other: Span) -> bool:
    return span.start >= other.start and (other.end is None or span.start < other.end)


def _decision_lane(told: Story, scale: _Scale, y: int) -> tuple[list[str], int]:
    """Who decided, written where there is room."""
    if not told.decided:
        return [], 0
    drawn = [_text(LEFT - 10, y + 14, "decisions", "e")]
    taken: list[float] = []  # where each level is free from
    for one in told.decided:
        said = _decision(one)
        width = CHARACTER * len(said) + 22
        at = scale.x(one.at)
        left = at if at + width <= RIGHT else at - width  # right of the mark, else left of it
        level = next((n for n, free in enumerate(taken) if free <= left), len(taken))
        taken[level : level + 1] = [max(left + width, at + 8)]
        top = y + level * 18
        drawn.append(
            f'<circle class="{"ok" if one.decision == "approved" else "bad"}" cx="{at}" cy="{top + 10}" r="5"/>'
        )
        drawn.append(_text(at + 10 if left == at else at - 10, top + 14, said, "" if left == at else "e"))
    return drawn, len(taken) * 18 + 12


def _decision(one: Decided) -> str:
    by = one.by if len(one.by) <= 24 else one.by[:23] + "…"
    return f"{one.gate} {one.decision} by {by}"


def _peer_lane(told: Story, scale: _Scale, y: int) -> tuple[list[str], int]:
    """Three lines from none to all live proxies."""
    height, top = 84, y + 20
    most = max(look.peers for look in told.looks) or 1
    drawn = [
        _text(LEFT - 10, y + 13, "live proxies", "e"),
        _text(LEFT - 10, top + 8, str(most), "m e"),
        _text(LEFT - 10, top + height, "0", "m e"),
        _line(LEFT, top + height, RIGHT, top + height, "g"),
    ]
    x = float(LEFT)
    for name, colour in (("trust the new root", "c1"), ("present a leaf of it", "c2"), ("trust nothing else", "c3")):
        drawn.append(_rect(x, y + 6, 12, 4, colour) + _text(x + 17, y + 13, name))
        x += 30 + CHARACTER * len(name)
    for index, values in enumerate(
        ([look.trust for look in told.looks], [look.present for look in told.looks], [look.only for look in told.looks])
    ):
        points: list[str] = []
        before: float | None = None
        for look, value in zip(told.looks, values, strict=True):
            # Lines that run together stay visible beside each other.
            level = round(top + height - (height - 6) * value / most - index * 2.5, 1)
            if before is not None:
                points.append(f"{scale.x(look.at)},{before}")
            points.append(f"{scale.x(look.at)},{level}")
            before = level
        points.append(f"{scale.x(told.end)},{before}")
        drawn.append(f'<polyline class="l l{index + 1}" points="{" ".join(points)}"/>')
    return drawn, height + 34


def _restart_lane(told: Story, scale: _Scale, y: int) -> tuple[list[str], int]:
    """A tick for each owner whose pods are all new."""
    drawn = [_text(LEFT - 10, y + 14, "restarts", "e")]
    for one in told.restarts:
        height, top = (16, y + 2) if one.control_plane else (10, y + 5)
        drawn.append(_rect(scale.x(one.at) - 1, top, 2, height, "c0" if one.control_plane else "c1"))
    drawn.append(_rect(LEFT, y + 28, 2, 12, "c0") + _text(LEFT + 8, y + 38, "control plane", "m"))
    drawn.append(_rect(LEFT + 108, y + 28, 2, 10, "c1") + _text(LEFT + 116, y + 38, "workload", "m"))
    return drawn, 52


def _handshake_lane(told: Story, scale: _Scale, y: int) -> tuple[list[str], int]:
    """New connections a second, and a bar of its own wherever one failed."""
    height, top = 48, y + 20
    steps = [(a, b) for a, b in pairwise(told.counted) if b.at > a.at and b.attempted >= a.attempted]
    rates = [(a, b, (b.attempted - a.attempted) / (b.at - a.at).total_seconds()) for a, b in steps]
    most = max((rate for *_, rate in rates), default=0.0) or 1.0
    attempted, failed = _total(told.counted, "attempted"), _total(told.counted, "failed")
    drawn = [
        _text(LEFT - 10, y + 13, "handshakes", "e"),
        f'<text class="m" x="{LEFT}" y="{y + 13}">{attempted:,} new connections counted from outside, '
        f'<tspan class="{"bad" if failed else "ok"}">{failed:,} failed</tspan></text>',
        _text(LEFT - 10, top + 10, f"{most:.0f}/s" if most >= 1 else f"{most:.2f}/s", "m e"),
        _text(LEFT - 10, top + height, "0", "m e"),
        _line(LEFT, top + height, RIGHT, top + height, "g"),
    ]
    for a, b, rate in rates:
        left, right = scale.x(a.at), scale.x(b.at)
        tall = round((height - 4) * rate / most, 1)
        drawn.append(_rect(left, top + height - tall, max(right - left, 0.5), tall, "area"))
        if b.failed > a.failed:
            drawn.append(_rect(left, top, max(right - left, 2), height, "bad"))
    return drawn, height + 32


def _total(counted: Sequence[Counted], name: str) -> int:
    """What was counted in all; a counter that went back was set to 0 in between."""
    values = [int(getattr(one, name)) for one in counted]
    return sum(b - a if b >= a else b for a, b in pairwise(values))


def _axis(scale: _Scale, y: int) -> Iterator[str]:
    for at in scale.ticks():
        x = scale.x(at)
        half = CHARACTER * len(scale.label(at)) / 2
        if x - half >= LEFT - 4 and x + half <= WIDTH - 8:
            yield _text(x, y, scale.label(at), "m n")
    yield _text(LEFT - 10, y, f"UTC, {scale.start:%Y-%m-%d}", "m e")


def _duration(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{mark}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
