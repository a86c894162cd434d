"""One Prefect task per step of a rotation: retries around one call of the domain, and nothing else.

Tasks take the open rotation itself: it is an opaque object of this process, never stored, hashed or logged by Prefect.
Results are not persisted and nothing is cached: every step observes before it acts, so running it again is always
right, and no result may ever hold key material.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from capstan.config import retry_for
from capstan.errors import Retryable
from capstan.rotation import (
    Rotation,
    changing,
    enabling,
    hooks,
    looking_back,
    offline,
    outages,
    preparing,
    proving,
    redating,
    replacing,
    turning,
    waiting,
)

P = ParamSpec("P")
R = TypeVar("R")

# Seconds before each further try, as far as `capstan.config.retry_for` goes.
RETRY_DELAYS = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0]


def _may_succeed_later(_task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Prefect asks this before each retry: only errors that say so of themselves are worth one, for a while."""
    outcome = state.result(raise_on_failure=False)
    return isinstance(outcome, Retryable) and sum(RETRY_DELAYS[: run.run_count]) <= retry_for()


def _saying_where(name: str) -> Callable[..., str]:
    """Names a run of a step after the step, its cluster and its phase, as far as it has them."""

    def named(parameters: dict[str, Any]) -> str:
        where = [str(parameters[each]) for each in ("cluster", "name", "phase") if parameters.get(each) is not None]
        return f"{name}: {', '.join(where)}" if where else name

    return named


def _step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            function,
            name=name,
            task_run_name=_saying_where(name),
            retries=len(RETRY_DELAYS),
            retry_delay_seconds=RETRY_DELAYS,
            retry_condition_fn=_may_succeed_later,
            persist_result=False,
            cache_policy=NO_CACHE,
            log_prints=False,
        )

    return decorate


locate = _step("locate the phase")(Rotation.locate)
pending = _step("what is left of the phase")(Rotation.pending)

look_back = _step("look for the way back")(looking_back.look_back)
face_forward = _step("face forward")(turning.face_forward)
recall = _step("recall what there was before")(turning.recall)
turn_back = _step("turn back")(turning.turn_back)

preflight = _step("preflight checks")(preparing.preflight)
mint = _step("mint root and issuers into the vault")(preparing.mint)

recall_signed = _step("recall what the offline root signed")(offline.recall_signed)
request_signing = _step("ask for the offline root's signatures")(offline.request_signing)
accept_signed = _step("take back what the offline root signed")(offline.accept_signed)

mint_redated = _step("re-date roots in the vault")(redating.mint_redated)
redate_root = _step("root := the same with another life")(redating.redate_root)
restart_redated = _step("restart what signs")(redating.restart_redated)

enable_guard = _step("may the add-on be enabled?")(enabling.guard)
enable_mint = _step("mint root and intermediates into the vault")(enabling.mint)
enable_recall_signed = _step("recall what the offline root signed for the add-on")(enabling.recall_signed)
enable_request_signing = _step("ask for the offline root's signatures for the add-on")(enabling.request_signing)
enable_accept_signed = _step("take back what the offline root signed for the add-on")(enabling.accept_signed)
enable_adopt = _step("adopt the CA that is in the vault")(enabling.adopt)
enable_upload = _step("upload the four secrets")(enabling.upload)
enable_add_on = _step("enable the add-on")(enabling.enable_add_on)
enable_await_signing = _step("wait until istiod signs with it")(enabling.await_signing)

guard_webhooks = _step("whose are the webhooks' certificates?")(hooks.guard)
mint_serving = _step("mint serving certificates into the vault")(hooks.mint)
widen_ca_bundle = _step("caBundle := old + new")(hooks.widen)
back_up_serving = _step("back up serving pair")(hooks.back_up)
settle_ca_bundle = _step("let API servers learn of it")(hooks.settle)
switch_serving = _step("serving Secret := new")(hooks.switch)
reload_serving = _step("wait until every replica serves it")(hooks.reload)
narrow_ca_bundle = _step("caBundle := new")(hooks.narrow)

diagnose_expired = _step("what has expired?")(replacing.diagnose)
mint_replacement = _step("mint what takes its place into the vault")(replacing.mint)
settle_roots = _step("which roots stay?")(replacing.settle)
replace_roots = _step("bundle := roots that live")(replacing.replace_roots)
replace_issuer = _step("issuer := one that lives")(replacing.replace_issuer)
restart_dead_control_plane = _step("restart the dead control plane")(replacing.restart_control_plane)
restart_dead_data_plane = _step("restart dead workloads")(replacing.restart_data_plane)
account_for_outage = _step("say how long it lasted")(outages.account_for_outage)

widen_bundle = _step("bundle := old + new")(changing.widen_bundle)
narrow_bundle = _step("bundle := new")(changing.narrow_bundle)
restart_control_plane = _step("restart control plane")(changing.restart_control_plane)
restart_data_plane = _step("restart workloads")(changing.restart_data_plane)

back_up_issuer = _step("back up issuer")(changing.back_up_issuer)
switch_issuer = _step("issuer := new")(changing.switch_issuer)

watch_gate = _step("watch gate")(waiting.watch_gate)
watch_convergence = _step("watch convergence")(waiting.watch_convergence)
prove_refusal = _step("prove that the old root is refused")(proving.prove_refusal)
finish = _step("finish")(proving.finish)
