"""Priority and fairness: answers name a flow schema and a priority level, and a fault refuses as a full one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.lab.apiserver.fairness import classify
from infra.lab.apiserver.users import User

if TYPE_CHECKING:
    import httpx

SCHEMA, LEVEL = "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"
NAMESPACES = "/api/v1/namespaces"


@pytest.mark.proves(
    "api", "429 of priority and fairness", "the lab refuses as a real server: text, headers, Retry-After"
)
def test_a_refusal_is_plain_text_with_retry_after_and_both_headers(http: httpx.Client) -> None:
    served = http.get(NAMESPACES)
    http.post("/lab/faults", json={"path": "/namespaces$", "action": {"fairness": 5}}).raise_for_status()
    refused = http.get(NAMESPACES)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.headers["content-type"] == "text/plain; charset=utf-8"
    assert refused.text == "Too many requests, please try again later.\n"
    assert (refused.headers[SCHEMA], refused.headers[LEVEL]) == (served.headers[SCHEMA], served.headers[LEVEL])
    assert http.get(NAMESPACES).status_code == 200


def test_users_of_one_level_share_its_headers_and_others_do_not(http: httpx.Client) -> None:
    def uids(user: str, *groups: str) -> tuple[str, str]:
        answer = http.get("/version", headers=[("impersonate-user", user), *(("impersonate-group", g) for g in groups)])
        return answer.headers[SCHEMA], answer.headers[LEVEL]

    people = uids("jane", "system:authenticated")
    assert people == uids("john", "system:authenticated")
    assert people != uids("system:node:a", "system:nodes", "system:authenticated")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (("system:masters", "system:authenticated"), ("exempt", "exempt")),
        (("system:serviceaccounts", "system:authenticated"), ("service-accounts", "workload-low")),
        (("system:serviceaccounts", "system:serviceaccounts:kube-system"),
         ("kube-system-service-accounts", "workload-high")),
        ((), ("catch-all", "catch-all")),
    ],
)  # fmt: skip
def test_the_first_flow_schema_that_fits_decides(groups: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert classify(User("somebody", groups=groups)) == expected


@pytest.mark.parametrize("seconds", [0, -1, "soon", None])
def test_a_fairness_fault_needs_seconds(http: httpx.Client, seconds: object) -> None:
    assert http.post("/lab/faults", json={"action": {"fairness": seconds}}).status_code == 400
