"""The inventory: which trust domains there are, when each is rotated, and where its runs execute. A YAML file."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from capstan.config import DnsLabel, RotationPolicy, TrustDomain
from capstan.rotation.expiry import WarnBefore
from capstan.rotation.reviving import SweepThresholds
from capstan.window import MaintenanceWindow, TimeZone
from deployments.notifications import Notifications

_PLAIN = ConfigDict(frozen=True, extra="forbid")
# A rotation a year leaves up to 53 weeks between two starts. An issuer has to outlive that and the rotation itself, by
# more than the radar's warning comes before its end.
ISSUER_VALIDITY = timedelta(days=450)
_RESERVED_TAGS = ("capstan", "domain:", "system:", "inventory:")


def _free_tag(value: str) -> str:
    if value == "capstan" or value.startswith(_RESERVED_TAGS[1:]):
        msg = f"{value!r} is no tag of your own: Capstan sets capstan, domain:…, system:… and inventory:… itself"
        raise ValueError(msg)
    if not value.strip():
        msg = f"{value!r} is no tag"
        raise ValueError(msg)
    return value


Tag = Annotated[str, AfterValidator(_free_tag)]


class Schedule(BaseModel):
    """When a rotation begins each year. With nothing set, `capstan deploy` picks a week of its own for the domain."""

    model_config = _PLAIN

    week: int | None = Field(
        default=None, ge=1, le=52, description="ISO week; it begins as the window first opens in it"
    )
    date: str | None = Field(default=None, description="MM-DD; it begins as the window opens on that day")
    cron: str | None = Field(
        default=None, description="Cron expression in the domain's time zone, all inside the window"
    )

    @field_validator("date")
    @classmethod
    def _real_date(cls, value: str | None) -> str | None:
        if value is None:
            return value
        days = {4: 30, 6: 30, 9: 30, 11: 30, 2: 28}  # 29 February would come every fourth year
        match = re.fullmatch(r"(\d\d)-(\d\d)", value)
        if not match or not 1 <= int(match[1]) <= 12 or not 1 <= int(match[2]) <= days.get(int(match[1]), 31):
            msg = f"{value!r} is no day of every year as MM-DD, such as 03-15"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("week", "date", "cron") if getattr(self, name) is not None]
        if len(given) > 1:
            msg = f"one of week, date and cron says when; {' and '.join(given)} are given"
            raise ValueError(msg)
        return self

    @property
    def spread(self) -> bool:
        """Whether the week is left to the spread."""
        return self.week is None and self.date is None and self.cron is None


class Weeks(BaseModel):
    """The ISO weeks of a year into which rotations are spread."""

    model_config = _PLAIN

    first: int = Field(default=3, ge=1, le=52, description="First week that is used")
    last: int = Field(default=49, ge=1, le=52, description="Last week that is used; leaves out the end of the year")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last < self.first:
            msg = f"the last week, {self.last}, is before the first, {self.first}"
            raise ValueError(msg)
        return self


class Defaults(BaseModel):
    """What holds for every domain that does not say otherwise."""

    model_config = _PLAIN

    policy: RotationPolicy = Field(
        default=RotationPolicy(),
        description="Merged with each domain's, key by key; issuer_validity is 450 days by default",
    )
    vault: str = Field(default="", description="Where private keys live: local:/path or https://NAME.vault.azure.net")
    home: str = Field(default="", description="Directory on the worker for evidence; default: its $CAPSTAN_HOME")
    time_zone: TimeZone = Field(default="UTC", description="IANA name; schedules and windows are in its local time")
    maintenance_window: MaintenanceWindow = Field(
        default=MaintenanceWindow(), description="When a rotation may begin; default: any time"
    )
    weeks: Weeks = Field(default=Weeks(), description="The weeks of the year that rotations are spread over")
    work_pool: DnsLabel = Field(default="capstan", description="Work pool whose workers run the flows")
    job_variables: dict[str, Any] = Field(default_factory=dict, description="Overrides of the work pool's job template")
    tags: tuple[Tag, ...] = Field(default=(), description="Tags on every deployment and run, beside Capstan's own")


class DomainEntry(TrustDomain):
    """One trust domain and how it is deployed."""

    name: DnsLabel = Field(description="Name of the trust domain, and of its deployments")
    description: str = Field(default="", description="Whose mesh this is, for people; Markdown")
    schedule: Schedule = Field(default=Schedule(), description="When it is rotated each year; default: spread")
    schedule_intermediate: Schedule | None = Field(
        default=None,
        description="When the intermediate (Linkerd: the issuer) alone is rotated each year; {}: half a year after the "
        "root; default: never by itself",
    )
    time_zone: TimeZone | None = Field(default=None, description="IANA name; default: that of `defaults`")
    maintenance_window: MaintenanceWindow | None = Field(default=None, description="Default: that of `defaults`")
    work_pool: DnsLabel | None = Field(default=None, description="Default: that of `defaults`")
    job_variables: dict[str, Any] = Field(default_factory=dict, description="Merged over those of `defaults`")
    tags: tuple[Tag, ...] = Field(default=(), description="Beside those of `defaults`")
    enabled: bool = Field(default=True, description="false: no schedule starts it; a person still can")


class WorkPool(BaseModel):
    """A work pool, made when it is missing."""

    model_config = _PLAIN

    name: DnsLabel = Field(description="Name of the pool, as in `prefect worker start --pool NAME`")
    type: Literal["process", "kubernetes"] = Field(
        default="process", description="process: a subprocess of the worker; kubernetes: a Job for each run"
    )
    base_job_template: str | None = Field(
        default=None, description="JSON file beside this one; kubernetes needs it, process has Prefect's own"
    )

    @model_validator(mode="after")
    def _has_template(self) -> Self:
        if self.type == "kubernetes" and self.base_job_template is None:
            msg = "a kubernetes pool needs base_job_template, such as infra/kubernetes/work-pool.json"
            raise ValueError(msg)
        return self


class Sweep(BaseModel):
    """The watch over runs that died."""

    model_config = _PLAIN

    enabled: bool = Field(default=True, description="false: nobody reschedules runs whose worker died")
    interval: timedelta = Field(default=timedelta(minutes=5), description="How often it looks")
    work_pool: DnsLabel | None = Field(default=None, description="Default: that of `defaults`")
    thresholds: SweepThresholds = Field(default=SweepThresholds(), description="From when on a run counts as dead")

    @field_validator("interval")
    @classmethod
    def _sensible(cls, value: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= value <= timedelta(hours=1):
            msg = "an interval is between 1 minute and 1 hour"
            raise ValueError(msg)
        return value


class Radar(BaseModel):
    """The daily look at expiry and health; read-only."""

    model_config = _PLAIN

    enabled: bool = Field(default=True, description="false: nobody looks between the rotations")
    cron: str | None = Field(
        default=None, description="In each domain's time zone; default: daily between 06:00 and 07:00, spread by name"
    )
    job_variables: dict[str, Any] = Field(
        default_factory=dict, description="Merged over the domain's, such as service_account_name: capstan-reader"
    )
    warn_before: WarnBefore = Field(default=WarnBefore(), description="From when on an end is told, and how urgently")


class Inventory(BaseModel):
    """All trust domains that are deployed together."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Capstan inventory")

    schema_version: Literal[1] = Field(alias="schemaVersion", description="Version of this format")
    name: DnsLabel = Field(default="default", description="Marks what this file deployed; never rename it lightly")
    defaults: Defaults = Defaults()
    work_pools: tuple[WorkPool, ...] = Field(default=(WorkPool(name="capstan"),), min_length=1)
    sweep: Sweep = Sweep()
    radar: Radar = Radar()
    notifications: Notifications | None = Field(default=None, description="Who is told of what; default: nobody")
    domains: tuple[DomainEntry, ...] = Field(min_length=1)

    def trust_domain(self, entry: DomainEntry) -> TrustDomain:
        """The flow's parameter: the entry with the defaults filled in."""
        merged: dict[str, Any] = {"issuer_validity": ISSUER_VALIDITY}
        merged |= self.defaults.policy.model_dump(exclude_unset=True) | entry.policy.model_dump(exclude_unset=True)
        merged = {"window": self.window(entry), "time_zone": self.zone(entry)} | merged
        own = {name: getattr(entry, name) for name in TrustDomain.model_fields}
        own["policy"] = RotationPolicy.model_validate(merged)
        own["vault"] = entry.vault or self.defaults.vault
        own["home"] = entry.home or self.defaults.home
        return TrustDomain(**own)

    def zone(self, entry: DomainEntry) -> str:
        """A domain's time zone."""
        return entry.time_zone or self.defaults.time_zone

    def window(self, entry: DomainEntry) -> MaintenanceWindow:
        """A domain's maintenance window."""
        return entry.maintenance_window or self.defaults.maintenance_window

    def pool(self, entry: DomainEntry) -> str:
        """The name of a domain's work pool."""
        return entry.work_pool or self.defaults.work_pool


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an inventory file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Inventory.model_json_schema()}


def beside(file: Path, name: str) -> Path:
    """A file named in an inventory: relative to the inventory's own directory."""
    return (file.parent / Path(name).expanduser()).resolve()
