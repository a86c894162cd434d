"""A self-signed Istio: the root gets a new end with its old key, and then it is replaced."""

from __future__ import annotations

import base64
import datetime as dt
from typing import TYPE_CHECKING

import pytest

from capstan.pki.bundle import Bundle
from tests.rotation_istio.meshes import require_listed_points

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.pki.inspect import Certificate
    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("istio-self-signed")]

LAB = ("--system", "istio", "--ca", "self-signed", "--istio-version", "1.30.1", "--multiroot")


def signer(case: Turned) -> Certificate:
    text = base64.b64decode(case.secret("istio-ca-secret")["data"]["ca-cert.pem"])
    return Bundle.parse_lenient(text, "istio-ca-secret").certificates[0]


def test_a_root_gets_a_new_end_and_keeps_key_and_name_byte_for_byte(turned: Callable[..., Turned]) -> None:
    case = turned()
    before = signer(case)
    ran = case.runner.run(
        "istio", "transition", "--rotation", case.rotation, "--approve", "auto", "-o", "json",
        home=case.home, kubeconfig=case.lab.kubeconfig,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr[-3000:]
    require_listed_points(ran, "points-redate.txt")
    after = signer(case)
    assert after.fingerprint != before.fingerprint
    assert after.spki_sha256 == before.spki_sha256
    assert after.raw.subject.public_bytes() == before.raw.subject.public_bytes()
    assert after.serial_number != before.serial_number
    assert after.not_after > dt.datetime.now(dt.UTC) + dt.timedelta(days=3000)
    assert case.live_roots() == {after.fingerprint}
    case.require_no_failure()


def test_a_new_key_goes_by_way_of_cacerts_and_drops_nobody(turned: Callable[..., Turned]) -> None:
    case = turned()
    kept = case.secret("istio-ca-secret")
    ran = case.run()
    case.require_finished(ran)
    require_listed_points(ran, "points-new-key.txt")
    assert case.secret("istio-ca-secret")["data"] == kept["data"]
    assert set(case.secret("cacerts")["data"]) >= {"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"}
