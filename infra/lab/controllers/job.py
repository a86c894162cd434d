"""Job: run pods to completion.

Semantics: https://kubernetes.io/docs/concepts/workloads/controllers/job/. A finished pod is counted once, however
soon it is deleted: it carries the finalizer batch.kubernetes.io/job-tracking until the Job's status has it
(uncountedTerminatedPods is the list in between). Not covered: podFailurePolicy, successPolicy, backoffLimitPerIndex.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, path_of

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
JOBS = "/apis/batch/v1/jobs"
TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 30.0  # seconds before a failed pod is replaced; a real controller has 10 s to 10 min


class JobController:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.jobs = context.informer(JOBS)
        self.pods = context.informer(pods.PODS)
        context.by_owner(pods.PODS)
        context.orphans(pods.PODS)
        self.controller = Controller("Job", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.jobs.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.pods.on_change(self._pod_changed)
        return self.controller

    def _pod_changed(self, _: str, __: JSON | None, pod: JSON) -> None:
        pods.enqueue_owner(pod, "Job", self.controller.add)

    async def reconcile(self, key: Key) -> float | None:
        """Count what has finished, decide whether the Job has, start what is missing."""
        await self.jobs.synced()
        await self.pods.synced()
        job = self.jobs.objects.get(key)
        if job is None:
            return None
        mine = await pods.owned(self.context, job, "batch/v1", "Job", job["spec"].get("selector") or {})
        if _ended(job):
            await self._release(mine)
            return await self._expire(job)
        if pods.terminating(job):
            await self._release(mine)
            return None
        job = await self._count(job, mine)
        mine = self.context.by_owner(pods.PODS).get(job["metadata"]["uid"])
        if any(pods.finished(p) and TRACKING in (p["metadata"].get("finalizers") or []) for p in mine):
            return 0.0  # finished while the others were counted: starting pods now would start one too many
        verdict = _verdict(job)
        if verdict is not None:
            return await self._finish(job, mine, *verdict)
        again = await self._manage(job, mine)
        await self._report(job)
        deadline = job["spec"].get("activeDeadlineSeconds")
        started = (job.get("status") or {}).get("startTime")
        if deadline is not None and started:
            left = deadline - (pods.now() - pods.parse_time(started)).total_seconds()
            again = min(filter(None, (again, max(left, 0.05))))
        return again

    # Counting ------------------------------------------------------------------------------------------------------

    async def _count(self, job: JSON, mine: list[JSON]) -> JSON:
        """Move finished pods into the counters: list them as uncounted, free them, then count."""
        tracked = [p for p in mine if TRACKING in (p["metadata"].get("finalizers") or [])]
        over = [p for p in tracked if pods.finished(p) or (pods.terminating(p) and not p["spec"].get("nodeName"))]
        status = copy.deepcopy(job.get("status") or {})
        waiting = status.get("uncountedTerminatedPods") or {}
        listed = {uid for uids in waiting.values() for uid in uids}
        fresh = [p for p in over if p["metadata"]["uid"] not in listed]
        if not fresh and not listed:
            return job
        uncounted = {name: list(waiting.get(name) or []) for name in ("succeeded", "failed")}
        indexes = _indexes(status.get("completedIndexes", ""))
        for pod in fresh:
            good = (pod.get("status") or {}).get("phase") == "Succeeded"
            uncounted["succeeded" if good else "failed"].append(pod["metadata"]["uid"])
            if good and INDEX in (pod["metadata"].get("annotations") or {}):
                indexes.add(int(pod["metadata"]["annotations"][INDEX]))
        if indexes:
            status["completedIndexes"] = _ranges(indexes)
        if fresh:
            status["uncountedTerminatedPods"] = {k: v for k, v in uncounted.items() if v}
            job = await self.context.write_status(JOBS, job, status)
        await self._release(over)
        status = copy.deepcopy(job.get("status") or {})
        for name, uids in uncounted.items():
            if uids:
                status[name] = status.get(name, 0) + len(uids)
        status["uncountedTerminatedPods"] = {}
        return await self.context.write_status(JOBS, job, status)

    async def _release(self, mine: list[JSON]) -> None:
        for pod in mine:
            finalizers = pod["metadata"].get("finalizers") or []
            if TRACKING in finalizers:
                left = [f for f in finalizers if f != TRACKING]
                try:
                    body = {"metadata": {"uid": pod["metadata"]["uid"], "finalizers": left or None}}
                    answer = await self.context.client.patch(path_of(pods.PODS, pod), body)
                except ApiError as error:
                    if error.status != 404:
                        raise
                else:
                    if not pods.terminating(answer):
                        self.pods.observe(answer)

    # Running -------------------------------------------------------------------------------------------------------

    async def _manage(self, job: JSON, mine: list[JSON]) -> float | None:
        """Start or stop pods; returns seconds to wait where a failure demands a pause."""
        spec, status = job["spec"], job.get("status") or {}
        alive = [p for p in mine if pods.active(p)]
        if spec.get("suspend"):
            await pods.delete_many(self.context, alive)
            return None
        going = [p for p in mine if pods.terminating(p) and not pods.finished(p)]
        parallelism = spec.get("parallelism", 1)
        completions = spec.get("completions")
        done = status.get("succeeded", 0)
        # Without completions it is a work queue: no new pods after the first success.
        work_queue = len(alive) if done else parallelism
        wanted = work_queue if completions is None else min(parallelism, completions - done)
        if len(alive) > wanted:
            await pods.delete_many(self.context, sorted(alive, key=pods.first_to_go)[: len(alive) - wanted])
        missing = wanted - len(alive) - len(going)
        if missing <= 0:
            return None
        pause = _pause(status, mine)
        if pause > 0:
            return pause
        await pods.create_many(self.context, key_of(job)[0], self._new_pods(job, alive + going, missing))
        return None

    @staticmethod
    def _new_pods(job: JSON, there: list[JSON], count: int) -> list[JSON]:
        fresh = []
        used = {int(p["metadata"].get("annotations", {}).get(INDEX, -1)) for p in there}
        used |= _indexes((job.get("status") or {}).get("completedIndexes", ""))
        free = (i for i in range(job["spec"].get("completions") or 0) if i not in used)
        for _ in range(count):
            pod = pods.from_template(copy.deepcopy(job["spec"]["template"]), job, "batch/v1", "Job")
            pod["metadata"]["finalizers"] = [*(pod["metadata"].get("finalizers") or []), TRACKING]
            if job["spec"].get("completionMode") == "Indexed":
                index = next(free, None)
                if index is None:
                    break
                name = job["metadata"]["name"]
                pod["metadata"]["generateName"] = f"{name}-{index}-"
                pod["metadata"].setdefault("annotations", {})[INDEX] = str(index)
                pod["metadata"]["labels"][INDEX] = str(index)
                pod["spec"]["hostname"] = f"{name}-{index}"
                for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
                    container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})
            fresh.append(pod)
        return fresh

    async def _report(self, job: JSON) -> None:
        mine = self.context.by_owner(pods.PODS).get(job["metadata"]["uid"])
        alive = [p for p in mine if pods.active(p)]
        status = copy.deepcopy(job.get("status") or {})
        suspended = bool(job["spec"].get("suspend"))
        if suspended:
            status.pop("startTime", None)
        else:
            status.setdefault("startTime", pods.timestamp())
        known = pods.condition(job, "Suspended")
        if suspended or known is not None:
            others = [c for c in status.get("conditions") or [] if c["type"] != "Suspended"]
            reason, message = ("JobSuspended", "Job suspended") if suspended else ("JobResumed", "Job resumed")
            fresh = _condition("Suspended", reason, message, holds=suspended)
            status["conditions"] = [*others, known if known and known["status"] == fresh["status"] else fresh]
        status["active"] = len(alive)
        if not alive:
            status.pop("active")
        status["ready"] = sum(pods.is_ready(p) for p in alive)
        status["terminating"] = sum(pods.terminating(p) and not pods.finished(p) for p in mine)
        status.setdefault("uncountedTerminatedPods", {})
        await self.context.write_status(JOBS, job, status)

    # The end -------------------------------------------------------------------------------------------------------

    async def _finish(self, job: JSON, mine: list[JSON], kind: str, reason: str, message: str) -> float | None:
        """Announce the result, stop what still runs, and when nothing does, declare the Job ended."""
        first = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
        alive = [p for p in mine if pods.active(p)]
        going = [p for p in mine if pods.terminating(p) and not pods.finished(p)]
        status = copy.deepcopy(job.get("status") or {})
        conditions = status.setdefault("conditions", [])
        if pods.condition(job, first) is None:
            conditions.append(_condition(first, reason, message))
        status.setdefault("startTime", pods.timestamp())
        status["ready"] = 0
        status["terminating"] = len(going)
        status.pop("active", None)
        if alive or going:
            if alive:
                status["active"] = len(alive)
            await self.context.write_status(JOBS, job, status)
            await pods.delete_many(self.context, alive)
            return None
        conditions.append(_condition(kind, reason, message))
        if kind == "Complete":
            status["completionTime"] = pods.timestamp()
        status.setdefault("uncountedTerminatedPods", {})
        await self.context.write_status(JOBS, job, status)
        return None

    async def _expire(self, job: JSON) -> float | None:
        """Delete a finished Job after ttlSecondsAfterFinished."""
        life = job["spec"].get("ttlSecondsAfterFinished")
        if life is None or pods.terminating(job):
            return None
        ended = next(
            c["lastTransitionTime"] for c in job["status"]["conditions"] if c["type"] in ("Complete", "Failed")
        )
        left = float(life) - (pods.now() - pods.parse_time(ended)).total_seconds()
        if left > 0:
            return left
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": job["metadata"]["uid"]}}
        await self.context.client.delete(path_of(JOBS, job), body)
        return None


def _verdict(job: JSON) -> tuple[str, str, str] | None:
    """(condition type, reason, message) when the Job's result is certain."""
    spec, status = job["spec"], job.get("status") or {}
    failed = status.get("failed", 0)
    target = pods.condition(job, "FailureTarget")
    if target is not None:
        return "Failed", target["reason"], target["message"]
    if failed > spec.get("backoffLimit", 6):
        return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    started, deadline = status.get("startTime"), spec.get("activeDeadlineSeconds")
    if deadline is not None and started and (pods.now() - pods.parse_time(started)).total_seconds() >= deadline:
        return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
    completions, done = spec.get("completions"), status.get("succeeded", 0)
    if completions is None:
        if done and not status.get("active"):
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
    elif done >= completions:
        return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
    return None


def _condition(kind: str, reason: str, message: str, *, holds: bool = True) -> JSON:
    moment = pods.timestamp()
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "lastProbeTime": moment,
        "lastTransitionTime": moment,
        "reason": reason,
        "message": message,
    }


def _ended(job: JSON) -> bool:
    return any(
        c["type"] in ("Complete", "Failed") and c["status"] == "True"
        for c in (job.get("status") or {}).get("conditions") or []
    )


def _pause(status: JSON, mine: list[JSON]) -> float:
    """Seconds until a failed pod may be replaced: doubling with every failure, counted from the last one."""
    failures = status.get("failed", 0)
    ends = [
        pods.parse_time(c["state"]["terminated"]["finishedAt"])
        for p in mine
        if (p.get("status") or {}).get("phase") == "Failed"
        for c in p["status"].get("containerStatuses") or []
        if (c.get("state") or {}).get("terminated", {}).get("finishedAt")
    ]
    if not failures or not ends:
        return 0.0
    pause = min(FIRST_BACKOFF * 2.0 ** int(failures - 1), LAST_BACKOFF)
    return pause - (pods.now() - max(ends)).total_seconds()


def _indexes(text: str) -> set[int]:
    """ "0,2-4" -> {0, 2, 3, 4}."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _ranges(indexes: set[int]) -> str:
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
