"""Events as client-go writes them, against traces 04, 09 and 12."""

from __future__ import annotations

from datetime import UTC, datetime

from infra.lab.linkerd.events import COMBINED, Correlator, Reference

DEPLOYMENT = Reference("Deployment", "apps/v1", "linkerd", "linkerd-identity")
ACCOUNT = Reference("ServiceAccount", "v1", "emoji", "web")


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def correlator(self) -> Correlator:
        return Correlator(
            "linkerd-identity",
            clock=lambda: datetime.fromtimestamp(self.seconds, UTC),
            monotonic=lambda: self.seconds,
        )


def test_equal_events_raise_the_count_of_one_object() -> None:
    clock = Clock()
    correlator = clock.correlator()
    writes = []
    for _ in range(4):
        writes.append(correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer"))
        clock.seconds += 1
    assert [write.is_patch for write in writes if write] == [False, True, True, True]
    assert [write.body["count"] for write in writes if write] == [1, 2, 3, 4]
    assert len({write.name for write in writes if write}) == 1
    assert writes[0] is not None
    assert writes[0].body["firstTimestamp"] == "1970-01-01T00:16:40Z"
    assert writes[3] is not None
    assert writes[3].body["lastTimestamp"] == "1970-01-01T00:16:43Z"


def test_from_the_tenth_different_message_on_events_are_combined() -> None:
    correlator = Clock().correlator()
    writes = [correlator.correlate(ACCOUNT, "Normal", "IssuedLeafCertificate", f"leaf {n}") for n in range(12)]
    messages = [write.body["message"] for write in writes if write]
    assert [message.startswith(COMBINED) for message in messages] == [False] * 9 + [True] * 3
    assert [write.body["count"] for write in writes if write] == [1] * 10 + [2, 3]


def test_forty_issuances_leave_nine_objects_and_one_combined_of_sixteen() -> None:
    correlator = Clock().correlator()
    writes = [correlator.correlate(ACCOUNT, "Normal", "IssuedLeafCertificate", f"leaf {n}") for n in range(40)]
    written = [write for write in writes if write]
    assert len(written) == 25
    assert len({write.name for write in written}) == 10
    assert written[-1].body["count"] == 16


def test_forty_reloads_good_and_bad_in_turn_leave_thirteen_and_twelve() -> None:
    correlator = Clock().correlator()
    reasons = ["IssuerUpdated", "IssuerUpdateSkipped"] * 20
    writes = [correlator.correlate(DEPLOYMENT, "Normal", reason, reason) for reason in reasons]
    assert sum(1 for write, reason in zip(writes, reasons, strict=True) if write and reason == "IssuerUpdated") == 13
    assert sum(1 for write, reason in zip(writes, reasons, strict=True) if write and reason != "IssuerUpdated") == 12


def test_one_more_event_is_allowed_after_five_minutes() -> None:
    clock = Clock()
    correlator = clock.correlator()
    for _ in range(30):
        last = correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer")
    assert last is None
    clock.seconds += 299
    assert correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer") is None
    clock.seconds += 2
    assert correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer") is not None
    assert correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer") is None


def test_the_budget_of_one_object_does_not_touch_another() -> None:
    correlator = Clock().correlator()
    for n in range(40):
        correlator.correlate(ACCOUNT, "Normal", "IssuedLeafCertificate", f"leaf {n}")
    assert correlator.correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer") is not None


def test_an_event_has_the_shape_of_the_recorded_ones() -> None:
    write = Clock().correlator().correlate(DEPLOYMENT, "Normal", "IssuerUpdated", "Updated identity issuer")
    assert write is not None
    assert write.body["involvedObject"] == {
        "kind": "Deployment",
        "namespace": "linkerd",
        "name": "linkerd-identity",
        "apiVersion": "apps/v1",
    }
    assert write.body["source"] == {"component": "linkerd-identity"}
    assert (write.body["reportingComponent"], write.body["reportingInstance"]) == ("", "")
    assert write.body["eventTime"] is None
    name, _, suffix = write.name.rpartition(".")
    assert name == "linkerd-identity"
    assert len(suffix) == 16
    assert int(suffix, 16) > 0
