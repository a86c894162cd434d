"""How long a step is tried again on a fault that may pass is the user's to say; one that will not pass is not tried."""

from __future__ import annotations

import pytest
from prefect.states import Failed

from capstan.errors import Denied, ServerFault
from tasks import steps


class Run:
    """What Prefect tells a task's retry condition of its run."""

    def __init__(self, run_count: int) -> None:
        self.run_count = run_count


def tries(error: Exception) -> int:
    """How often a step that always fails so is run."""
    state, condition = Failed(data=error), steps.locate.retry_condition_fn
    assert condition is not None
    for count in range(1, steps.locate.retries + 2):
        if count > steps.locate.retries or not condition(steps.locate, Run(count), state):
            return count
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("seconds", "expected"), [("", 7), ("0", 1), ("1", 2), ("8", 4), ("67", 6), ("600", 7)],
    ids=["default", "none", "one", "some", "almost-all", "more-than-there-are"],
)  # fmt: skip
@pytest.mark.proves("faults", "429, 500, 503", "a step is tried again for as long as CAPSTAN_RETRY_FOR says")
def test_a_fault_that_may_pass_is_tried_again_for_as_long_as_the_user_says(monkeypatch, seconds, expected):
    monkeypatch.setenv("CAPSTAN_RETRY_FOR", seconds)
    assert tries(ServerFault("cannot list pods")) == expected


def test_a_fault_that_will_not_pass_is_not_tried_again(monkeypatch):
    monkeypatch.setenv("CAPSTAN_RETRY_FOR", "600")
    assert tries(Denied("cannot list pods")) == 1
