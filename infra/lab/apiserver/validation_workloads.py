"""Rules for the kinds that make pods, from Deployment to CronJob, and for PodDisruptionBudgets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.schedule import schedule_error
from infra.lab.apiserver.validation_meta import IMMUTABLE, bad, forbidden, missing, non_negative, unsupported
from infra.lab.apiserver.validation_pods import pod_template

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_NO_MATCH = "`selector` does not match template `labels`"
_MAX_CRON_JOB_NAME = 52


def _selector(spec: Object, path: str, kind: str) -> list[Cause]:
    selector = spec.get("selector")
    if selector is None:
        return [missing(f"{path}.selector")]
    out = meta.label_selector(selector, f"{path}.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        out.append(bad(f"{path}.selector", selector, f"empty selector is invalid for {kind}"))
    return out


def _template(spec: Object, path: str, claims: frozenset[str] = frozenset()) -> list[Cause]:
    """The template of a controller that keeps pods running."""
    template = spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels")
    out: list[Cause] = []
    if not meta.selects(spec.get("selector"), labels):
        out.append(bad(f"{path}.template.metadata.labels", labels, _NO_MATCH))
    out += pod_template(template, f"{path}.template", claims)
    pod = template.get("spec") or {}
    if pod.get("restartPolicy") not in ("Always", None, ""):
        out.append(unsupported(f"{path}.template.spec.restartPolicy", pod["restartPolicy"], ("Always",)))
    if pod.get("activeDeadlineSeconds") is not None:
        out.append(forbidden(f"{path}.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds is not supported"))
    return out


def _immutable(new: Object, old: Object, field: str, path: str = "spec") -> list[Cause]:
    if new.get(field) == old.get(field):
        return []
    return [bad(f"{path}.{field}", new.get(field), IMMUTABLE)]


def _int_or_percent(obj: Object, field: str, path: str) -> list[Cause]:
    value = obj.get(field)
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]+%", value):
            message = (
                "a valid percent string must be a numeric string followed by an ending '%' "
                "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
            )
            return [bad(f"{path}.{field}", value, message)]
        return []
    return non_negative(obj, field, path)


def _at_most_all(obj: Object, field: str, path: str) -> list[Cause]:
    value = obj.get(field)
    if isinstance(value, str) and re.fullmatch(r"[0-9]+%", value) and int(value[:-1]) > 100:
        return [bad(f"{path}.{field}", value, "must not be greater than 100%")]
    return []


def _is_zero(value: object) -> bool:
    return value in (None, 0, "0%")


def _rolling(rolling: Object, path: str, *, surge_only_zero: str) -> list[Cause]:
    out = _int_or_percent(rolling, "maxUnavailable", path) + _int_or_percent(rolling, "maxSurge", path)
    if _is_zero(rolling.get("maxUnavailable")) and _is_zero(rolling.get("maxSurge")):
        out.append(bad(f"{path}.maxUnavailable", rolling.get("maxUnavailable", 0), surge_only_zero))
    return out + _at_most_all(rolling, "maxUnavailable", path)


def deployment(new: Object, old: Object | None) -> list[Cause]:
    """A Deployment's specification; the selector cannot change."""
    path, spec = "spec", new.get("spec") or {}
    out = non_negative(spec, "replicas", path)
    out += _selector(spec, path, "deployment")
    out += _template(spec, path)
    strategy = spec.get("strategy") or {}
    kind, rolling = strategy.get("type") or "", strategy.get("rollingUpdate")
    if kind == "Recreate" and rolling is not None:
        message = "may not be specified when strategy `type` is 'Recreate'"
        out.append(forbidden(f"{path}.strategy.rollingUpdate", message))
    elif kind == "RollingUpdate":
        if rolling is None:
            out.append(missing(f"{path}.strategy.rollingUpdate", "this should be defaulted and never be nil"))
        else:
            message = "may not be 0 when `maxSurge` is 0"
            out += _rolling(rolling, f"{path}.strategy.rollingUpdate", surge_only_zero=message)
    elif kind != "Recreate":
        out.append(unsupported(f"{path}.strategy.type", kind, ("Recreate", "RollingUpdate")))
    out += non_negative(spec, "minReadySeconds", path)
    out += non_negative(spec, "revisionHistoryLimit", path)
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None:
        out += non_negative(spec, "progressDeadlineSeconds", path)
        if deadline <= (spec.get("minReadySeconds") or 0):
            out.append(bad(f"{path}.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
    return out + (_immutable(spec, old.get("spec") or {}, "selector") if old else [])


def replica_set(new: Object, old: Object | None) -> list[Cause]:
    path, spec = "spec", new.get("spec") or {}
    out = non_negative(spec, "replicas", path) + non_negative(spec, "minReadySeconds", path)
    out += _selector(spec, path, "deployment")
    out += _template(spec, path)
    return out + (_immutable(spec, old.get("spec") or {}, "selector") if old else [])


def daemon_set(new: Object, old: Object | None) -> list[Cause]:
    path, spec = "spec", new.get("spec") or {}
    selector = spec.get("selector")
    out = meta.label_selector(selector, f"{path}.selector")
    template = _template(spec, path)
    out += [cause for cause in template if cause.field.endswith("template.metadata.labels")]
    if selector is not None and not selector.get("matchLabels") and not selector.get("matchExpressions"):
        out.append(bad(f"{path}.selector", selector, "empty selector is invalid for daemonset"))
    out += [cause for cause in template if not cause.field.endswith("template.metadata.labels")]
    out += non_negative(spec, "minReadySeconds", path)
    strategy = spec.get("updateStrategy") or {}
    kind, rolling = strategy.get("type") or "", strategy.get("rollingUpdate")
    if kind == "RollingUpdate":
        if rolling is None:
            out.append(missing(f"{path}.updateStrategy.rollingUpdate"))
        else:
            at = f"{path}.updateStrategy.rollingUpdate"
            out += _rolling(rolling, at, surge_only_zero="cannot be 0 when maxSurge is 0")
            if not _is_zero(rolling.get("maxUnavailable")) and not _is_zero(rolling.get("maxSurge")):
                out.append(bad(f"{at}.maxSurge", rolling["maxSurge"], "may not be set when maxUnavailable is non-zero"))
    elif kind != "OnDelete":
        out.append(unsupported(f"{path}.updateStrategy.type", kind, ("OnDelete", "RollingUpdate")))
    out += non_negative(spec, "revisionHistoryLimit", path)
    return out + (_immutable(spec, old.get("spec") or {}, "selector") if old else [])


_STATEFUL_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def stateful_set(new: Object, old: Object | None) -> list[Cause]:
    """A StatefulSet: most of its specification cannot change."""
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    if old is not None:
        before = old.get("spec") or {}
        if any(
            spec.get(field) != before.get(field)
            for field in spec.keys() | before.keys()
            if field not in _STATEFUL_MUTABLE
        ):
            names = ", ".join(f"'{field}'" for field in _STATEFUL_MUTABLE[:-1])
            message = (
                f"updates to statefulset spec for fields other than {names} and '{_STATEFUL_MUTABLE[-1]}' are forbidden"
            )
            out.append(forbidden(path, message))
            return out
    management = spec.get("podManagementPolicy") or ""
    if not management:
        out.append(missing(f"{path}.podManagementPolicy"))
    elif management not in ("OrderedReady", "Parallel"):
        out.append(bad(f"{path}.podManagementPolicy", management, "must be 'OrderedReady' or 'Parallel'"))
    strategy = spec.get("updateStrategy") or {}
    kind, rolling = strategy.get("type") or "", strategy.get("rollingUpdate")
    if not kind:
        out.append(missing(f"{path}.updateStrategy"))
    elif kind == "OnDelete" and rolling is not None:
        message = "only allowed for updateStrategy 'RollingUpdate'"
        out.append(bad(f"{path}.updateStrategy.rollingUpdate", _internal_rolling(rolling), message))
    elif kind == "RollingUpdate" and rolling is not None:
        out += non_negative(rolling, "partition", f"{path}.updateStrategy.rollingUpdate")
    elif kind not in ("OnDelete", "RollingUpdate"):
        shown = {"Type": kind, "RollingUpdate": _internal_rolling(rolling)}
        out.append(bad(f"{path}.updateStrategy", shown, "must be 'RollingUpdate' or 'OnDelete'"))
    out += non_negative(spec, "replicas", path) + non_negative(spec, "minReadySeconds", path)
    out += _selector(spec, path, "statefulset")
    claims = frozenset(
        (claim.get("metadata") or {}).get("name") or "" for claim in spec.get("volumeClaimTemplates") or []
    )
    return out + _template(spec, path, claims)


def _internal_rolling(rolling: Object | None) -> Object | None:
    """As errors show it: the server validates its internal type, whose JSON has Go's names."""
    if rolling is None:
        return None
    return {"Partition": rolling.get("partition") or 0, "MaxUnavailable": rolling.get("maxUnavailable")}


# What of the template of a suspended Job that has never started may change (KEP-2926)
_JOB_DIRECTIVES = ("affinity", "nodeSelector", "tolerations", "schedulingGates")


def _job_template_changed(spec: Object, before: Object, *, waiting: bool) -> bool:
    template, old = spec.get("template") or {}, before.get("template") or {}
    if not waiting or template == old:
        return bool(template != old)
    kept = {key: value for key, value in (template.get("spec") or {}).items() if key not in _JOB_DIRECTIVES}
    held = {key: value for key, value in (old.get("spec") or {}).items() if key not in _JOB_DIRECTIVES}
    free = ("labels", "annotations")
    metadata = {key: value for key, value in (template.get("metadata") or {}).items() if key not in free}
    named = {key: value for key, value in (old.get("metadata") or {}).items() if key not in free}
    return kept != held or metadata != named


def job(new: Object, old: Object | None) -> list[Cause]:
    """A Job: what it runs cannot change once it is there."""
    spec = new.get("spec") or {}
    out = _generated_selector(new) if old is None else []
    out += job_spec(spec, "spec")
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if spec.get("selector") is None:
        out.append(missing("spec.selector"))
    elif not meta.selects(spec["selector"], labels):
        out.append(bad("spec.template.metadata.labels", labels, _NO_MATCH))
    if old is not None:
        before = old.get("spec") or {}
        fields = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"]
        if spec.get("completionMode") != "Indexed":
            fields.insert(0, "completions")
        waiting = bool(before.get("suspend")) and not (old.get("status") or {}).get("startTime")
        if _job_template_changed(spec, before, waiting=waiting):
            fields.insert(fields.index("selector") + 1, "template")
        for field in fields:
            out += _immutable(spec, before, field)
    return out


def _generated_selector(new: Object) -> list[Cause]:
    """A Job selects its pods by what the server generates for it, unless it says that it does so itself."""
    spec, metadata = new.get("spec") or {}, new.get("metadata") or {}
    if spec.get("manualSelector") or spec.get("selector") is None:
        return []
    uid, name = metadata.get("uid") or "", metadata.get("name") or ""
    expected = {"controller-uid": uid, "job-name": name}
    expected |= {f"batch.kubernetes.io/{key}": value for key, value in expected.items()}
    if meta.selects(spec["selector"], expected):
        return []
    return [bad("spec.selector", spec["selector"], "`selector` not auto-generated")]


def job_spec(spec: Object, path: str) -> list[Cause]:
    """What Job and the template of a CronJob have in common."""
    out: list[Cause] = []
    for field in ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"):
        out += non_negative(spec, field, path)
    mode = spec.get("completionMode")
    if mode not in (None, "NonIndexed", "Indexed"):
        out.append(unsupported(f"{path}.completionMode", mode, ("NonIndexed", "Indexed")))
    if mode == "Indexed" and spec.get("completions") is None:
        out.append(missing(f"{path}.completions", "when completion mode is Indexed"))
    template = spec.get("template") or {}
    out += pod_template(template, f"{path}.template")
    policy = (template.get("spec") or {}).get("restartPolicy") or ""
    if policy == "Always":
        out.append(missing(f"{path}.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"'))
    elif policy not in ("OnFailure", "Never"):
        out.append(unsupported(f"{path}.template.spec.restartPolicy", policy, ("OnFailure", "Never")))
    return out


def _time_zone(name: str | None, path: str) -> list[Cause]:
    """A name of the time zone database; Go's ``Local`` is none, and an empty one must be left out."""
    if name is None:
        return []
    if not name:
        return [bad(path, name, "timeZone must be nil or non-empty string")]
    if name.lower() == "local":
        return [bad(path, name, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")]
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return [bad(path, name, f"unknown time zone {name}")]
    return []


def cron_job(new: Object, old: Object | None) -> list[Cause]:
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    schedule = spec.get("schedule") or ""
    if not schedule:
        out.append(missing(f"{path}.schedule"))
    else:
        problem = schedule_error(schedule)
        if problem:
            out.append(bad(f"{path}.schedule", schedule, problem))
        if "TZ" in schedule and ((old or {}).get("spec") or {}).get("schedule") != schedule:
            message = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            out.append(bad(f"{path}.schedule", schedule, message))
    out += non_negative(spec, "startingDeadlineSeconds", path)
    out += _time_zone(spec.get("timeZone"), f"{path}.timeZone")
    policy = spec.get("concurrencyPolicy") or ""
    if not policy:
        out.append(missing(f"{path}.concurrencyPolicy"))
    elif policy not in ("Allow", "Forbid", "Replace"):
        out.append(unsupported(f"{path}.concurrencyPolicy", policy, ("Allow", "Forbid", "Replace")))
    out += job_spec((spec.get("jobTemplate") or {}).get("spec") or {}, f"{path}.jobTemplate.spec")
    out += non_negative(spec, "successfulJobsHistoryLimit", path)
    out += non_negative(spec, "failedJobsHistoryLimit", path)
    name = (new.get("metadata") or {}).get("name") or ""
    if len(name) > _MAX_CRON_JOB_NAME:
        out.append(bad("metadata.name", name, f"must be no more than {_MAX_CRON_JOB_NAME} characters"))
    return out


def pod_disruption_budget(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        shown = {
            "MinAvailable": spec["minAvailable"],
            "Selector": spec.get("selector"),
            "MaxUnavailable": spec["maxUnavailable"],
            "UnhealthyPodEvictionPolicy": spec.get("unhealthyPodEvictionPolicy"),
        }
        out.append(bad(path, shown, "minAvailable and maxUnavailable cannot be both set"))
    for field in ("minAvailable", "maxUnavailable"):
        out += _int_or_percent(spec, field, path) + _at_most_all(spec, field, path)
    policy = spec.get("unhealthyPodEvictionPolicy")
    policies = ("AlwaysAllow", "IfHealthyBudget")
    if policy is not None and policy not in policies:
        out.append(unsupported(f"{path}.unhealthyPodEvictionPolicy", policy, policies))
    return out + meta.label_selector(spec.get("selector"), f"{path}.selector")
