"""Sign a statement, and verify a signature over one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.approvals import jws, sshsig
from capstan.errors import VerificationFailed

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.approvals.keys import ListedKey
    from capstan.approvals.statement import Statement

NAMESPACE: Final = "capstan-approval"
"""Namespace of SSH signatures: one made for a commit or a login counts for nothing here, and the other way round."""


def verify(statement: Statement, signature: str, key: ListedKey, *, asked: datetime, given: datetime) -> None:
    """Check that `key` signed exactly this statement.

    Args:
        asked: When the request was made, aware UTC.
        given: When the answer was taken down, aware UTC.

    Raises:
        VerificationFailed: It does not verify; says why.
    """
    if key.ssh is not None:
        if not sshsig.is_sshsig(signature):
            raise VerificationFailed(
                "the signature cannot count", where=f"SSH signature, key {key.id}",
                observed="no SSH signature", expected="text from -----BEGIN SSH SIGNATURE----- on",
            )  # fmt: skip
        sshsig.verify(statement.text().encode("utf-8"), signature, NAMESPACE, key.ssh)
    elif key.certificate is not None:
        jws.verify(statement, signature, key.certificate, asked=asked, given=given)
