"""Bodies in the Kubernetes protobuf encoding, as recorded from kubectl and as an independent encoder writes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lab.apiserver import protobuf
from infra.lab.apiserver.status import ApiStatusError

RECORDED = Path(__file__).parents[2] / "vectors" / "kube-api" / "90-kubectl-protobuf-creates.json"
# kubectl's bodies were recorded with a namespace of this length
NAMESPACE = "vec-abcdefgh"


def _recorded() -> list[Any]:
    out = []
    for step in json.loads(RECORDED.read_text())["steps"]:
        chunks, answer = step["request"].get("bodyProtobuf"), step["response"]["body"]
        if chunks and step["response"]["status"] == 201:
            body = b"".join(
                base64.b64decode(c["base64"]) if isinstance(c, dict) else NAMESPACE.encode() for c in chunks
            )
            out.append(pytest.param(body, answer, id=answer["kind"]))
    return out


@pytest.mark.parametrize(("body", "answered"), _recorded())
def test_what_kubectl_sends_decodes_to_what_the_server_answered(body: bytes, answered: dict[str, Any]) -> None:
    obj = protobuf.decode(body)
    assert (obj["kind"], obj["apiVersion"]) == (answered["kind"], answered["apiVersion"])
    for part in ("data", "rules", "subjects", "roleRef"):
        expected = json.loads(json.dumps(answered.get(part)).replace("${ns}", NAMESPACE))
        assert obj.get(part) == expected
    name = answered["metadata"].get("name", "").replace("${ns}", NAMESPACE)
    assert obj["metadata"].get("name", "") in ("", name)


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _block(field: int, data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _body(api_version: str, kind: str, message: bytes) -> bytes:
    return protobuf.MAGIC + _block(1, _block(1, api_version) + _block(2, kind)) + _block(2, message)


def test_a_lease_with_times_and_numbers() -> None:
    renewed = _number(1, 1767225600) + _number(2, 123456000)
    spec = _block(1, "me") + _number(2, 15) + _block(4, renewed) + _number(5, 0)
    obj = protobuf.decode(_body("coordination.k8s.io/v1", "Lease", _block(1, _block(1, "lock")) + _block(2, spec)))
    assert obj["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "renewTime": "2026-01-01T00:00:00.123456Z",
        "leaseTransitions": 0,
    }


def test_a_budget_with_a_percentage_and_a_service_with_a_number() -> None:
    percent = _block(1, _number(1, 1) + _number(2, 0) + _block(3, "50%"))
    obj = protobuf.decode(_body("policy/v1", "PodDisruptionBudget", _block(2, percent)))
    assert obj["spec"] == {"minAvailable": "50%"}
    port = _number(3, 443) + _block(4, _number(1, 0) + _number(2, 8443) + _block(3, ""))
    obj = protobuf.decode(_body("v1", "Service", _block(2, _block(1, port))))
    assert obj["spec"]["ports"] == [{"port": 443, "targetPort": 8443}]


def test_quantities_negative_numbers_and_booleans() -> None:
    amount = _block(1, "cpu") + _block(2, _block(1, "500m"))
    obj = protobuf.decode(_body("v1", "ResourceQuota", _block(2, _block(1, amount))))
    assert obj["spec"] == {"hard": {"cpu": "500m"}}
    options = _number(1, 0) + _number(3, 1) + _block(4, "Orphan")
    obj = protobuf.decode(_body("v1", "DeleteOptions", options))
    assert obj["gracePeriodSeconds"] == 0
    assert (obj["orphanDependents"], obj["propagationPolicy"]) == (True, "Orphan")
    job = _block(2, _number(1, -1 & (2**64 - 1)))
    assert protobuf.decode(_body("batch/v1", "Job", job))["spec"]["parallelism"] == -1


def test_embedded_types_land_in_the_object_that_embeds_them() -> None:
    volume = _block(1, "v") + _block(2, _block(2, b""))
    pod = _block(2, _block(1, volume))
    assert protobuf.decode(_body("v1", "Pod", pod))["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]


def test_unknown_fields_are_skipped_whatever_their_wire_type() -> None:
    extra = _number(99, 7) + _block(98, "x") + _varint(97 << 3 | 5) + b"\0" * 4 + _varint(96 << 3 | 1) + b"\0" * 8
    entry = _block(1, "k") + _block(2, "v")
    assert protobuf.decode(_body("v1", "ConfigMap", extra + _block(2, entry)))["data"] == {"k": "v"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nope",
        protobuf.MAGIC + b"\xff\xff",
        _body("v1", "Nothing", b""),
        _body("v1", "Secret", _block(1, b"\x0a\x7f")),
    ],
)
def test_what_is_no_known_message_is_400(body: bytes) -> None:
    with pytest.raises(ApiStatusError) as caught:
        protobuf.decode(body, "Secret")
    assert caught.value.code == 400
    assert caught.value.message.startswith("the object provided is unrecognized (must be of type Secret): ")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_never_break_the_decoder(noise: bytes) -> None:
    for body in (protobuf.MAGIC + noise, _body("v1", "Pod", noise)):
        try:
            assert isinstance(protobuf.decode(body, "Pod"), dict)
        except ApiStatusError as error:
            if error.code != 400:
                raise
