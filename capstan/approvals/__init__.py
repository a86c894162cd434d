"""Approvals: what is asked, who may answer, and which answers count."""

from capstan.approvals.asking import Approver, Choice, Decision, Request, approver, decided_by, nobody

__all__ = ["Approver", "Choice", "Decision", "Request", "approver", "decided_by", "nobody"]
