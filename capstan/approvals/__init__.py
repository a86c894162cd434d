"""Approvals: what is asked, who may answer, and which answers count.

`Proposal` is what is decided on, `Statement` what is signed, `ApproverPolicy` whose answers count, `tally` what they
come to.
"""

from capstan.approvals.asking import Approver, Choice, Decision, Request, approver, decided_by, nobody
from capstan.approvals.policy import ApproverPolicy, approver_policy
from capstan.approvals.proposal import Gate, Proposal
from capstan.approvals.statement import Question, Statement
from capstan.approvals.tally import Tally, tally

__all__ = [
    "Approver",
    "ApproverPolicy",
    "Choice",
    "Decision",
    "Gate",
    "Proposal",
    "Question",
    "Request",
    "Statement",
    "Tally",
    "approver",
    "approver_policy",
    "decided_by",
    "nobody",
    "tally",
]
