"""What no single field shows: domains that collide, windows too short, schedules outside them, keys lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from capstan.approvals.keys import listed
from capstan.approvals.policy import compiled
from capstan.errors import InvalidInput
from deployments.inventory import DomainEntry, Inventory
from deployments.judging_azure import plugin_cas
from deployments.problems import Path, Problem
from deployments.spread import APART, distance
from deployments.timetable import (
    by_week,
    cluster_keys,
    explicit,
    longest_gap,
    skipped,
    timetable,
    upcoming,
    weeks_that_fit,
)
from deployments.yaml_source import Source

# What a rotation may take from its start until the new issuer is in place, beyond the gap between two starts.
ISSUER_MARGIN = timedelta(days=30)
# Between an ISO week of one year and of the next there are 52 or 53 weeks.
LONGEST_YEAR = timedelta(weeks=53)
# A fixed date to look at schedules from: what an inventory is worth must not depend on the day it is read.
_FROM = datetime(2026, 1, 1, tzinfo=UTC)


def judged(inventory: Inventory, source: Source) -> list[Problem]:
    """Everything an author should know beyond the types of the fields."""
    problems = [*_pools(inventory, source), *_names(inventory, source), *_meshes(inventory, source)]
    problems += plugin_cas(inventory, source)
    for index, entry in enumerate(inventory.domains):
        path: Path = ("domains", index)
        problems += _policy(inventory, entry, path, source)
        problems += _schedule(inventory, entry, path, source)
        problems += _half(inventory, entry, path, source)
        problems += _keys(inventory, entry, path, source)
    if not any(problem.level == "error" for problem in problems):
        problems += _calendar(inventory, source)
    return problems


def _pools(inventory: Inventory, source: Source) -> Iterator[Problem]:
    known: set[str] = set()
    for index, pool in enumerate(inventory.work_pools):
        if pool.name in known:
            yield source.problem(("work_pools", index, "name"), f'"{pool.name}" for the second time', "each pool once")
        known.add(pool.name)
    wanted: list[tuple[Path, str]] = [
        (("domains", index, "work_pool"), inventory.pool(entry)) for index, entry in enumerate(inventory.domains)
    ]
    wanted.append((("sweep", "work_pool"), inventory.sweep.work_pool or inventory.defaults.work_pool))
    said: set[Path] = set()
    for path, name in wanted:
        if name in known:
            continue
        place = path if path in source.places else ("defaults", "work_pool")
        if place not in said:
            yield source.problem(place, f'pool "{name}"', f"one of work_pools: {', '.join(sorted(known))}")
        said.add(place)


def _names(inventory: Inventory, source: Source) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, entry in enumerate(inventory.domains):
        path: Path = ("domains", index, "name")
        if entry.name in first:
            line = source.place(("domains", first[entry.name], "name"))[0]
            yield source.problem(path, f'"{entry.name}" for the second time, after line {line}', "each domain once")
        first.setdefault(entry.name, index)
        names: set[str] = set()
        reached: set[tuple[str | None, str | None]] = set()
        for at, cluster in enumerate(entry.clusters):
            where: Path = ("domains", index, "clusters", at)
            if cluster.name in names:
                yield source.problem((*where, "name"), f'cluster "{cluster.name}" again', "a name of its own for each")
            elif (cluster.kubeconfig, cluster.context) in reached:
                yield source.problem(where, "a cluster that is in this domain already", "each cluster once")
            names.add(cluster.name)
            reached.add((cluster.kubeconfig, cluster.context))


def _meshes(inventory: Inventory, source: Source) -> Iterator[Problem]:
    """Two domains must not rotate one control plane."""
    first: dict[tuple[str | None, str | None, str], tuple[int, str]] = {}
    for index, entry in enumerate(inventory.domains):
        pool = inventory.pool(entry)
        for at, cluster in enumerate(entry.clusters):
            mesh = (cluster.kubeconfig, cluster.context, entry.control_plane_namespace)
            other, other_pool = first.setdefault(mesh, (index, pool))
            if other == index:
                continue
            given = f'the control plane of domain "{inventory.domains[other].name}"'
            path: Path = (
                ("domains", index, "clusters", at) if entry.model_fields_set & {"clusters"} else ("domains", index)
            )
            if pool == other_pool:
                yield source.problem(path, given, "each control plane in one domain")
            else:
                expected = (
                    f'a cluster of its own, unless "{cluster.context or "default"}" means another one in this pool'
                )
                yield source.problem(path, given, expected, warning=True)


def _policy(inventory: Inventory, entry: DomainEntry, path: Path, source: Source) -> Iterator[Problem]:
    policy = inventory.trust_domain(entry).policy

    def place(field: str) -> Path:
        own: Path = (*path, "policy", field)
        shared: Path = ("defaults", "policy", field)
        return own if own in source.places or shared not in source.places else shared

    for field in ("window", "time_zone"):
        for where in ((*path, "policy", field), ("defaults", "policy", field)):
            if where in source.places:
                expected = "maintenance_window and time_zone beside the policy: they place the schedule too"
                yield source.problem(where, f"{field} in a policy", expected)
    unusable = False
    for at, approver in enumerate(policy.approvers):
        try:
            listed(approver)
        except InvalidInput as error:
            unusable = True
            yield source.problem((*place("approvers"), at, "key"), error.observed or error.what, error.expected)
    try:
        if not unusable:
            compiled(policy.approvers, policy.quorum, "inventory")
    except InvalidInput as error:
        field = "quorum" if error.where.endswith("quorum") else "approvers"
        yield source.problem(place(field), f"{error.what}: {error.observed}", error.expected)
    window = inventory.window(entry)
    if window.length < policy.restart_deadline:
        own_window: Path = (*path, "maintenance_window")
        yield source.problem(
            own_window if own_window in source.places else ("defaults", "maintenance_window"),
            f"{window}, open for {_spoken(window.length)}",
            f"at least restart_deadline, {_spoken(policy.restart_deadline)}: one restart would outlast it",
        )
    if policy.issuer_validity >= policy.root_validity:
        given = f"{policy.issuer_validity.days} days"
        yield source.problem(
            place("issuer_validity"), given, f"less than root_validity, {policy.root_validity.days} days"
        )


def _schedule(inventory: Inventory, entry: DomainEntry, path: Path, source: Source) -> Iterator[Problem]:
    if not entry.enabled:
        return
    window, zone, schedule = inventory.window(entry), inventory.zone(entry), entry.schedule
    where: Path = (*path, "schedule")
    gap = LONGEST_YEAR
    if schedule.spread:
        weeks = inventory.defaults.weeks
        if not any(weeks_that_fit(weeks.first, weeks.last, window, zone)):
            day = skipped(weeks.first, window, zone)
            yield source.problem(
                where, f"{window.start} does not exist on {day} in {zone}", "more weeks to choose from"
            )
    elif schedule.week is not None:
        day = skipped(schedule.week, window, zone)
        if day is not None:
            given = f"week {schedule.week}: {window.start} does not exist on {day} in {zone}"
            yield source.problem((*where, "week"), given, "another week, or a window that opens at another hour")
    elif schedule.date is not None and len(window.days) < 7:
        given = f'"{schedule.date}", which falls on every day of the week in turn'
        yield source.problem((*where, "date"), given, f"a week; the window opens on {window}")
    else:
        field: Path = (*where, "date" if schedule.date is not None else "cron")
        try:
            starts = upcoming(explicit(schedule, window, zone), _FROM, 120)
        except ValueError:
            yield source.problem(field, f'"{schedule.cron}"', 'a cron expression, such as "0 3 * 3 sat#2"')
            return
        outside = next((start for start in starts if not window.contains(start, zone)), None)
        if outside is not None:
            yield source.problem(
                field, f"a start at {outside:%a %Y-%m-%d %H:%M %Z}", f"starts inside the window, {window}"
            )
        gap = longest_gap(starts)
        shortest = min((b - a for a, b in pairwise(starts)), default=gap)
        if shortest < timedelta(days=28):
            given = f"starts {_spoken(shortest)} apart"
            yield source.problem(field, given, "at least 28 days between two rotations", warning=True)
    yield from _lifetimes(inventory, entry, path, source, gap)


def _half(inventory: Inventory, entry: DomainEntry, path: Path, source: Source) -> Iterator[Problem]:
    """When the intermediate alone is rotated."""
    schedule = entry.schedule_intermediate
    if schedule is None:
        return
    where: Path = (*path, "schedule_intermediate")
    own, window, zone = entry.schedule, inventory.window(entry), inventory.zone(entry)
    if schedule.spread:
        if own.date is not None or own.cron is not None:
            given = "{}, half a year after a root's schedule that has no week"
            yield source.problem(where, given, "a week, date or cron of its own")
        return
    if schedule.week is not None:
        day = skipped(schedule.week, window, zone)
        if day is not None:
            given = f"week {schedule.week}: {window.start} does not exist on {day} in {zone}"
            yield source.problem((*where, "week"), given, "another week, or a window that opens at another hour")
        elif own.week is not None and distance(schedule.week, own.week) < APART:
            given = f"week {schedule.week}, {distance(schedule.week, own.week)} from the root's"
            yield source.problem((*where, "week"), given, f"at least {APART} weeks from it", warning=True)
        return
    field: Path = (*where, "date" if schedule.date is not None else "cron")
    if schedule.date is not None and len(window.days) < 7:
        given = f'"{schedule.date}", which falls on every day of the week in turn'
        yield source.problem(field, given, f"a week; the window opens on {window}")
        return
    try:
        starts = upcoming(explicit(schedule, window, zone), _FROM, 120)
    except ValueError:
        yield source.problem(field, f'"{schedule.cron}"', 'a cron expression, such as "0 3 * 9 sat#2"')
        return
    outside = next((start for start in starts if not window.contains(start, zone)), None)
    if outside is not None:
        yield source.problem(field, f"a start at {outside:%a %Y-%m-%d %H:%M %Z}", f"starts inside the window, {window}")


def _lifetimes(
    inventory: Inventory, entry: DomainEntry, path: Path, source: Source, gap: timedelta
) -> Iterator[Problem]:
    """A certificate must outlive the time until the next rotation has replaced it."""
    policy = inventory.trust_domain(entry).policy
    for field in ("issuer_validity", "root_validity"):
        validity: timedelta = getattr(policy, field)
        if validity < gap + ISSUER_MARGIN:
            own: Path = (*path, "policy", field)
            yield source.problem(
                own if own in source.places else ("defaults", "policy", field),
                f"{validity.days} days",
                f"at least {(gap + ISSUER_MARGIN).days}: up to {gap.days} between two starts, "
                f"and {ISSUER_MARGIN.days} to spare",
            )


def _keys(inventory: Inventory, entry: DomainEntry, path: Path, source: Source) -> Iterator[Problem]:
    """Where the private keys would be lost."""
    kinds = {pool.name: pool.type for pool in inventory.work_pools}
    vault = inventory.trust_domain(entry).vault
    if kinds.get(inventory.pool(entry)) == "kubernetes" and not vault.startswith("https://"):
        own: Path = (*path, "vault")
        place = own if own in source.places or ("defaults", "vault") not in source.places else ("defaults", "vault")
        given = f'"{vault}" in a kubernetes pool' if vault else "no vault in a kubernetes pool"
        yield source.problem(
            place, given, "https://NAME.vault.azure.net: a local vault goes with the pod", warning=True
        )


def _calendar(inventory: Inventory, source: Source) -> Iterator[Problem]:
    """Domains that begin too close to each other. Only asked of an inventory without errors."""
    index = {entry.name: at for at, entry in enumerate(inventory.domains)}
    entries = {entry.name: entry for entry in inventory.domains}
    starts = timetable(inventory)
    for week, names in sorted(by_week(starts).items()):
        if len(names) > 1:
            path: Path = ("domains", index[names[-1]])
            given = f"week {week}, as {', '.join(names[:-1])}"
            yield source.problem(path, given, "a week of its own: name another, or widen defaults.weeks", warning=True)
    named = [(name, start.week) for name, start in starts.items() if start.week is not None]
    for at, (one, week) in enumerate(named):
        for other, another in named[at + 1 :]:
            near = distance(week, another)
            same = cluster_keys(inventory, entries[one]) & cluster_keys(inventory, entries[other])
            if same and 0 < near < APART:
                later = max((one, other), key=lambda name: index[name])
                given = (
                    f"week {starts[later].week}, {near} from domain {one if later == other else other} on one cluster"
                )
                expected = f"at least {APART} weeks between rotations of one cluster"
                yield source.problem(("domains", index[later]), given, expected, warning=True)


def _spoken(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" if minutes < 48 * 60 else f"{round(minutes / (24 * 60))} days"
