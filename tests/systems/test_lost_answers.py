"""A proxy whose answer was lost on the way is asked once more; one that answered badly is not."""

from __future__ import annotations

import pytest
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.errors import NotFound, Unreachable
from capstan.systems.asking import SECOND_TRY, ask_twice


class Proxy:
    """Gives one answer after another; the last for ever. Errors are raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> str:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def cluster(slept: list[float]) -> Cluster:
    return Cluster("c", kubernetes_client.Configuration(host="https://127.0.0.1:1"), sleep=slept.append)


def test_a_lost_answer_is_asked_for_once_more_after_a_pause(cluster: Cluster, slept: list[float]) -> None:
    proxy = Proxy(Unreachable("connection reset"), "roots")
    assert ask_twice(cluster, proxy) == "roots"
    assert slept == [SECOND_TRY]


def test_a_proxy_that_stays_silent_is_unreadable_after_two_tries(cluster: Cluster) -> None:
    proxy = Proxy(Unreachable("connection reset"))
    with pytest.raises(Unreachable):
        ask_twice(cluster, proxy)
    assert proxy.asked == 2


def test_an_answer_that_says_no_is_not_asked_for_again(cluster: Cluster, slept: list[float]) -> None:
    proxy = Proxy(NotFound("no roots"))
    with pytest.raises(NotFound):
        ask_twice(cluster, proxy)
    assert proxy.asked == 1
    assert not slept
