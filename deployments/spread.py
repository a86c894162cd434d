"""Which week of the year each domain is rotated in: never two in one week while there are weeks left.

A domain's week follows from its name, so that it stays where it is when others come and go. Two names that fall on one
week are told apart by their order in the file: the earlier keeps it, the later takes the nearest free one. So a domain
that is added at the end moves nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# The least distance, in weeks, at which two domains of one cluster are spread, where the year has room for it.
APART = 4


@dataclass(frozen=True, slots=True)
class Spreadable:
    """A domain that needs a week.

    Attributes:
        name: The domain's name; decides the week it likes best.
        fits: The weeks it can begin in at all.
        clusters: Keys of its clusters; domains that share one are kept apart.
    """

    name: str
    fits: Sequence[int]
    clusters: frozenset[str] = frozenset()


def spread(
    domains: Iterable[Spreadable], taken: Mapping[str, int], shared: Mapping[str, frozenset[str]] | None = None
) -> dict[str, int]:
    """A week for each domain.

    Args:
        domains: In the order of the file.
        taken: Weeks that other domains have already, by the name of the domain.
        shared: Clusters of the domains in `taken`.

    Returns:
        ISO week by domain. With more domains than weeks, weeks are shared as evenly as can be.
    """
    weeks: dict[str, int] = dict(taken)
    clusters: dict[str, frozenset[str]] = dict(shared or {})
    result: dict[str, int] = {}
    for domain in domains:
        liked = _liked(domain.name)
        neighbours = [weeks[other] for other in weeks if clusters.get(other, frozenset()) & domain.clusters]

        def cost(week: int, liked: int = liked, neighbours: list[int] = neighbours) -> tuple[int, int, int, int]:
            crowd = sum(1 for other in weeks.values() if other == week)
            near = max((APART - distance(week, other) for other in neighbours), default=0)
            return crowd, max(near, 0), distance(week, liked), week

        best = min(domain.fits, key=cost)
        result[domain.name] = weeks[domain.name] = best
        clusters[domain.name] = domain.clusters
    return result


def distance(one: int, other: int) -> int:
    """Weeks between two weeks of the year, across its end where that is shorter."""
    apart = abs(one - other)
    return min(apart, 52 - apart)


def _liked(name: str) -> int:
    """A week that depends on the name alone: not on the weeks that are allowed, nor on anybody else."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 52 + 1
