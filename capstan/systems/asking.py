"""Questions to live pods: an answer that was lost on the way is asked for once more, a bad one is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from capstan.cluster.resources import PODS
from capstan.errors import CapstanError, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

SECOND_TRY: Final = 0.5  # seconds before a pod whose answer was lost is asked once more

T = TypeVar("T")


def ask_twice(cluster: Cluster, question: Callable[[], T]) -> T:
    """The answer, at the second try if the first one was lost: a stream that breaks says nothing about the pod."""
    try:
        return question()
    except Retryable:
        cluster.sleep(SECOND_TRY)
        return question()


def is_gone(cluster: Cluster, pod: Object) -> bool:
    """Whether this incarnation of the pod has ended since it was listed; False where that cannot be told."""
    metadata = pod["metadata"]
    try:
        now = cluster.find(PODS, metadata["name"], metadata["namespace"])
    except CapstanError:
        return False
    return (
        now is None
        or now["metadata"]["uid"] != metadata["uid"]
        or now.get("status", {}).get("phase") in ("Succeeded", "Failed")
    )
