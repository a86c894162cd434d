"""Asking before a phase, on a live cluster: what is asked again, and what is never asked twice."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from capstan.approvals import Decision, Question, Request, decided_by, nobody
from capstan.config import ApproverKey, ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import ApprovalRejected, ApprovalRequired
from capstan.rotation import Rotation, open_rotation, preparing
from capstan.trust.phase import Phase
from flows.approval import approved
from tests.approvals.people import person as approver
from tests.rotation.rotations import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rotation.rotations import Rotations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# The public half of a key that nobody here holds.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHDr0f1xHIFPGTwV2uHvnGrSz1n8u0vQIcX3mHxQ0VZQ"


class Person:
    """Answers what it is told to, one answer a question, and remembers what it was asked."""

    def __init__(self, *answers: str | Callable[[Request], Decision]) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Decision:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if callable(answer):
            return answer(request)
        return said(request, answer)


def said(request: Request, choice: Any, by: str = "ada", **more: Any) -> Decision:
    return Decision(choice, by=by, at=datetime.now(UTC), answered=request.answered + 1, **more)


def domain(case: Rotations, **policy: Any) -> TrustDomain:
    cluster = ClusterRef(kubeconfig=str(case.lab.kubeconfig))
    return TrustDomain(clusters=(cluster,), home=str(case.home), policy=RotationPolicy(**policy))


def ask(case: Rotations, person: Any, **policy: Any) -> None:
    """Come to the approval before the trust phase, as every run of the flow does."""
    with open_rotation(domain(case, **policy), case.rotation) as rotation:
        ready(rotation)
        with decided_by(person):
            approved(rotation, Phase.TRUST)


def ready(rotation: Rotation) -> None:
    preparing.mint(rotation)


def test_an_approval_is_asked_for_once_and_survives_the_process_that_asked(rotations: Rotations) -> None:
    person = Person("approved")
    ask(rotations, person)
    ask(rotations, nobody)  # a later run: the record answers
    (given,) = rotations.record()["approvals"]
    (request,) = person.asked
    assert (given["gate"], given["by"], given["decision"]) == ("trust", "ada", "approved")
    assert (given["digest"], given["request"]) == (request.digest, request.id)
    # What was shown says what it is about.
    for word in (rotations.rotation, "trust", "capstan rollback", next(iter(rotations.old))[:8]):
        assert word in request.text, word
        assert word in request.markdown, word


def test_who_holds_is_asked_again_under_another_id_and_a_hold_is_no_approval(rotations: Rotations) -> None:
    person = Person("held", "held", "approved")
    ask(rotations, person)
    assert len({request.id for request in person.asked}) == 3
    assert [given["decision"] for given in rotations.record()["approvals"]] == ["held", "held", "approved"]


def test_a_rejection_stands_in_every_later_run_and_changes_nothing(rotations: Rotations) -> None:
    with pytest.raises(ApprovalRejected) as rejected:
        ask(rotations, Person(lambda request: said(request, "rejected", comment="not on a Friday")))
    assert rejected.value.observed == "not on a Friday"
    with pytest.raises(ApprovalRejected):
        ask(rotations, nobody)
    assert rotations.live_roots() == rotations.old


def test_an_answer_to_a_plan_that_the_cluster_has_left_behind_is_asked_for_again(rotations: Rotations) -> None:
    path = "/apis/apps/v1/namespaces/shop/deployments"
    template = rotations.lab.call("GET", path)["items"][0]
    labels = {"app": "newcomer"}
    newcomer = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "newcomer", "namespace": "shop"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {**template["spec"]["template"]["metadata"], "labels": labels},
                "spec": template["spec"]["template"]["spec"],
            },
        },
    }

    def meanwhile(request: Request) -> Decision:
        rotations.lab.call("POST", path, newcomer)
        wait_for(lambda: any(pod["pod"].startswith("newcomer") for pod in rotations.lab.pods()), "the newcomer")
        return said(request, "approved")

    person = Person(meanwhile, "approved")
    try:
        ask(rotations, person)
    finally:
        rotations.lab.call("DELETE", f"{path}/newcomer")
        wait_for(lambda: not any(pod["pod"].startswith("newcomer") for pod in rotations.lab.pods()), "it to go")
    first, second = person.asked
    assert first.digest != second.digest
    assert "newcomer" not in first.text
    assert "newcomer" in second.text


def test_where_approvers_are_listed_an_answer_that_nobody_signed_is_set_aside_and_the_next_is_told_why(
    rotations: Rotations,
) -> None:
    def gives_up(request: Request) -> Decision:
        return nobody(request)

    person = Person("approved", lambda request: said(request, "approved", by="eve", signature="forged"), gives_up)
    with pytest.raises(ApprovalRequired):
        ask(rotations, person, approvers=(ApproverKey(name="ada", key=KEY),))
    assert "not signed" in person.asked[1].markdown
    assert "not listed" in person.asked[2].markdown
    assert len({request.id for request in person.asked}) == 1
    assert rotations.record()["asked"]["trust"]["answered"] == 2


def test_signed_answers_of_a_quorum_open_the_gate_until_somebody_alters_one_in_the_record(
    rotations: Rotations,
) -> None:
    ada, bob = approver("ada", "ssh"), approver("bob", "x509")

    def signs(who: Any) -> Callable[[Request], Decision]:
        def answer(request: Request) -> Decision:
            asked = Question(
                request.domain, request.rotation, request.turn, request.gate, request.id, request.digest,
                datetime.now(UTC),
            )  # fmt: skip
            given = who.answer(question=asked, at=datetime.now(UTC), ticket="CHG-1")
            return said(request, "approved", by=who.name, ticket=given.ticket, signature=given.signature)

        return answer

    policy = {"approvers": (ada.listed, bob.listed), "quorum": 2}
    person = Person(signs(ada), signs(ada), signs(bob))
    ask(rotations, person, **policy)
    assert "1 more of bob needed" in person.asked[2].markdown
    ask(rotations, nobody, **policy)  # a later run verifies them again
    path = "/api/v1/namespaces/capstan-system/configmaps/capstan-rotation-linkerd"
    record = rotations.lab.call("GET", path)
    assert record["data"]["record.json"].count("CHG-1") == 3
    record["data"]["record.json"] = record["data"]["record.json"].replace("CHG-1", "CHG-2")
    rotations.lab.call("PUT", path, record)
    with pytest.raises(ApprovalRequired):
        ask(rotations, nobody, **policy)
