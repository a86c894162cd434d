"""CronJob: start Jobs on a schedule.

The annotation lab.capstan.dev/every-seconds on a CronJob makes this controller start a Job every so many seconds
instead: a lab that scales a day to a minute has to scale its cron as well. The product never sets or reads it.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, object_path, owner_reference, path_of
from infra.lab.controllers.schedule import Schedule
from infra.lab.events import record

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
CRON_JOBS = "/apis/batch/v1/cronjobs"
JOBS = "/apis/batch/v1/jobs"
EVERY = "lab.capstan.dev/every-seconds"


class CronJobController:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.crons = context.informer(CRON_JOBS)
        self.jobs = context.informer(JOBS)
        context.by_owner(JOBS)
        self.controller = Controller("CronJob", self.reconcile, workers=4)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.crons.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.jobs.on_change(lambda _, __, job: pods.enqueue_owner(job, "CronJob", self.controller.add))
        return self.controller

    async def reconcile(self, key: Key) -> float | None:
        """Tidy up finished Jobs, start one if it is time, and come back at the next time."""
        await self.crons.synced()
        await self.jobs.synced()
        cron = self.crons.objects.get(key)
        if cron is None or pods.terminating(cron):
            return None
        jobs = self.context.by_owner(JOBS).get(cron["metadata"]["uid"])
        status = self._status(cron, jobs)
        await self._trim(cron, jobs)
        again: float | None = None
        if not cron["spec"].get("suspend"):
            try:
                again = await self._run_if_due(cron, jobs, status)
            except (ValueError, ZoneInfoNotFoundError) as error:
                await record(
                    self.context.client,
                    cron,
                    "Warning",
                    "UnparseableSchedule",
                    str(error),
                    component="cronjob-controller",
                )
        await self.context.write_status(CRON_JOBS, cron, {k: v for k, v in status.items() if v})
        return again

    def _status(self, cron: JSON, jobs: list[JSON]) -> JSON:
        status = copy.deepcopy(cron.get("status") or {})
        status["active"] = [_job_reference(job) for job in jobs if not _result(job)]
        ends = [job["status"]["completionTime"] for job in jobs if (job.get("status") or {}).get("completionTime")]
        latest = max([*ends, *filter(None, [status.get("lastSuccessfulTime")])], default=None)
        if latest:
            status["lastSuccessfulTime"] = latest
        return status

    async def _run_if_due(self, cron: JSON, jobs: list[JSON], status: JSON) -> float | None:
        now = pods.now()
        since = pods.parse_time(status.get("lastScheduleTime") or cron["metadata"]["creationTimestamp"])
        due, following = _times(cron, since, now)
        if due is not None:
            limit = cron["spec"].get("startingDeadlineSeconds")
            late = limit is not None and (now - due).total_seconds() > limit
            running = [job for job in jobs if not _result(job)]
            policy = cron["spec"].get("concurrencyPolicy", "Allow")
            if not late and not (policy == "Forbid" and running):
                if policy == "Replace":
                    for job in running:
                        await self._delete(job)
                await self._start(cron, due, status)
        return max((following - pods.now()).total_seconds(), 0.01) if following is not None else None

    async def _start(self, cron: JSON, due: datetime, status: JSON) -> None:
        template = cron["spec"]["jobTemplate"]
        metadata = template.get("metadata") or {}
        # Minutes since the epoch, so that one scheduled time makes one Job however often this runs; seconds in a
        # scaled lab.
        unit = 1 if EVERY in (cron["metadata"].get("annotations") or {}) else 60
        stamp = int(due.timestamp()) // unit
        body = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"{cron['metadata']['name']}-{stamp}",
                "labels": metadata.get("labels") or {},
                "annotations": {
                    **(metadata.get("annotations") or {}),
                    "batch.kubernetes.io/cronjob-scheduled-timestamp": due.strftime("%Y-%m-%dT%H:%M:%SZ"),
                },
                "ownerReferences": [owner_reference(cron, "batch/v1", "CronJob")],
            },
            "spec": template["spec"],
        }
        try:
            job = await self.context.client.create(object_path(JOBS, key_of(cron)[0]), body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        else:
            self.jobs.observe(job)
            status["active"] = [*(status.get("active") or []), _job_reference(job)]
        status["lastScheduleTime"] = due.strftime("%Y-%m-%dT%H:%M:%SZ")

    async def _trim(self, cron: JSON, jobs: list[JSON]) -> None:
        """Delete the oldest finished Jobs beyond the history limits."""
        limits = {
            "Complete": cron["spec"].get("successfulJobsHistoryLimit", 3),
            "Failed": cron["spec"].get("failedJobsHistoryLimit", 1),
        }
        for result, limit in limits.items():
            ended = sorted((j for j in jobs if _result(j) == result), key=lambda j: j["metadata"]["creationTimestamp"])
            for job in ended[: max(len(ended) - limit, 0)]:
                await self._delete(job)

    async def _delete(self, job: JSON) -> None:
        body = {"propagationPolicy": "Background", "preconditions": {"uid": job["metadata"]["uid"]}}
        try:
            await self.context.client.delete(path_of(JOBS, job), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def _times(cron: JSON, since: datetime, now: datetime) -> tuple[datetime | None, datetime | None]:
    """(the last scheduled time in (since, now], the first one after now). Raises ValueError, ZoneInfoNotFoundError."""
    every = (cron["metadata"].get("annotations") or {}).get(EVERY)
    if every is not None:
        period = timedelta(seconds=max(float(every), 1.0))
        passed = int((now - since) / period)
        return (since + passed * period if passed else None), since + (passed + 1) * period
    zone = ZoneInfo(cron["spec"]["timeZone"]) if cron["spec"].get("timeZone") else UTC
    schedule = Schedule.parse(cron["spec"]["schedule"])
    due: datetime | None = None
    moment = schedule.next(max(since, now - timedelta(days=1)).astimezone(zone))
    while moment is not None and moment <= now:
        due, moment = moment.astimezone(UTC), schedule.next(moment)
    return due, moment


def _result(job: JSON) -> str:
    """ "Complete", "Failed", or "" while it runs."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return ""


def _job_reference(job: JSON) -> JSON:
    metadata = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }
