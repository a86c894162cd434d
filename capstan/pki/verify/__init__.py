"""Chain verification by two independent verifiers: `verify_leaf` and `verify_issuer`."""

from capstan.pki.verify.answer import GIVEN_ROOT, IN_THE_FIELD, STRICT, Purpose, Relaxation
from capstan.pki.verify.chain import Verified, anchors_of_issuer, anchors_of_leaf, verify_issuer, verify_leaf

__all__ = [
    "GIVEN_ROOT",
    "IN_THE_FIELD",
    "STRICT",
    "Purpose",
    "Relaxation",
    "Verified",
    "anchors_of_issuer",
    "anchors_of_leaf",
    "verify_issuer",
    "verify_leaf",
]
