"""Refusals of Azure Resource Manager."""

from __future__ import annotations


class ArmError(Exception):
    """An answer other than success: HTTP status, `error.code`, message and (or none) `error.target`."""

    def __init__(self, status: int, code: str, message: str, target: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.target = target


def invalid(message: str, target: str) -> ArmError:
    """400 for a property with a value that cannot be."""
    return ArmError(400, "InvalidParameter", message, target)


def not_supported(message: str, target: str) -> ArmError:
    """400 for a change that the service does not make."""
    return ArmError(400, "OperationNotAllowed", message, target)
