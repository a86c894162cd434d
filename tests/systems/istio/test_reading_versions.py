"""What each Istio version does with a changed CA."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from capstan.pki.mint import RootPolicy, mint_root
from capstan.systems.istio.versions import (
    CaChange,
    Taken,
    Version,
    follows_changed_roots,
    how_taken,
    image_version,
    needs_complete_set,
    parse_version,
    pushes_roots,
    refused_version,
    reloads,
    starts_without,
    ztunnel_follows_changed_roots,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
OLD, NEW = (mint_root(RootPolicy(common_name=name), 1, NOW).certificate.pem() + "\n" for name in ("old", "new"))
MULTIROOT = {"ISTIO_MULTIROOT_MESH": "true"}
BOTH = CaChange(OLD, OLD + NEW, signer=True)


def version(text: str) -> Version:
    found = parse_version(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("docker.io/istio/pilot:1.30.1", Version(1, 30, 1)),
        ("docker.io/istio/pilot:1.24.3-distroless", Version(1, 24, 3)),
        ("mcr.microsoft.com/oss/v2/istio/pilot:v1.27.1-2", Version(1, 27, 1)),
        ("mcr.microsoft.com/oss/istio/proxyv2:1.25.3-20260101", Version(1, 25, 3)),
        ("gcr.io/istio-testing/pilot:1.30-alpha.abcdef", Version(1, 30, 0, "alpha.abcdef")),
        ("docker.io/istio/pilot:1.30.0-rc.0-debug", Version(1, 30, 0, "rc.0")),
        ("registry.local:5000/istio/pilot:1.18.7", Version(1, 18, 7)),
        ("docker.io/istio/pilot:1.30.1@sha256:" + "0" * 64, Version(1, 30, 1)),
        ("registry.local:5000/istio/pilot", None),
        ("docker.io/istio/pilot:latest", None),
        ("docker.io/istio/pilot@sha256:" + "1.2" * 21, None),
    ],
)
def test_the_version_is_read_from_an_images_tag_whatever_its_suffix(image, expected):
    assert image_version(image) == expected


def test_a_release_candidate_comes_before_its_release_and_after_the_one_before_that():
    assert version("1.29.9") < version("1.30.0-alpha.1") < version("1.30.0-rc.0") < version("1.30.0-rc.10")
    assert version("1.30.0-rc.2") < version("1.30.0-rc.10") < version("1.30.0")


@pytest.mark.parametrize(
    ("tag", "env", "taken"),
    [
        ("1.11.8", {}, Taken.RESTART),
        ("1.11.8", {"AUTO_RELOAD_PLUGIN_CERTS": "true"}, Taken.RESTART),
        ("1.12.0", {}, Taken.RESTART),
        ("1.12.0", {"AUTO_RELOAD_PLUGIN_CERTS": "true"}, Taken.HOT),
        ("1.17.8", {"AUTO_RELOAD_PLUGIN_CERTS": "1"}, Taken.HOT),
        ("1.18.0", {}, Taken.HOT),
        ("1.18.0", {"AUTO_RELOAD_PLUGIN_CERTS": "false"}, Taken.RESTART),
        ("1.19.0", {"AUTO_RELOAD_PLUGIN_CERTS": "false"}, Taken.HOT),
        ("1.30.1", {}, Taken.HOT),
    ],
)
def test_an_intermediate_alone_is_reloaded_by_the_version_table(tag, env, taken):
    assert how_taken(version(tag), env, CaChange(OLD, OLD, signer=True)).taken is taken


@pytest.mark.parametrize(
    ("tag", "env", "change", "taken"),
    [
        ("1.19.5", MULTIROOT, BOTH, Taken.RESTART),
        ("1.20.0", {}, BOTH, Taken.RESTART),
        ("1.20.0", MULTIROOT, BOTH, Taken.HOT),
        ("1.29.3", MULTIROOT, CaChange(OLD + NEW, NEW), Taken.HOT),
        ("1.29.3", MULTIROOT, CaChange(OLD + NEW, OLD + NEW + NEW), Taken.HOT),
        ("1.29.3", MULTIROOT, CaChange(OLD, NEW + "\n" + OLD.strip()), Taken.RESTART),
        ("1.29.3", MULTIROOT, CaChange(OLD, OLD.replace("\n", "\r\n") + NEW), Taken.RESTART),
        ("1.30.0", MULTIROOT, CaChange(OLD, NEW + "\n" + OLD.strip()), Taken.HOT),
        ("1.30.0-rc.0", MULTIROOT, CaChange(OLD, OLD.replace("\n", "\r\n") + NEW), Taken.HOT),
        ("1.30.0", MULTIROOT, CaChange(OLD, NEW), Taken.RESTART),
        ("1.30.0", MULTIROOT, CaChange(OLD, "no pem"), Taken.RESTART),
        ("1.30.0", {"ISTIO_MULTIROOT_MESH": "yes"}, BOTH, Taken.RESTART),
        ("1.30.0", MULTIROOT, CaChange("", OLD), Taken.RESTART),
        ("1.30.0", MULTIROOT, CaChange(OLD, OLD), Taken.HOT),
        ("1.24.4", MULTIROOT, BOTH, Taken.REFUSED),
        ("1.25.1", MULTIROOT, BOTH, Taken.REFUSED),
    ],
)
def test_changed_roots_are_taken_by_version_flag_and_containment(tag, env, change, taken):
    prediction = how_taken(version(tag), env, change)
    assert prediction.taken is taken
    assert prediction.why


def test_an_unknown_version_is_restarted():
    assert how_taken(None, MULTIROOT, BOTH).taken is Taken.RESTART


def test_only_the_two_broken_versions_are_refused():
    refused = [
        tag for tag in ("1.24.3", "1.24.4", "1.24.5", "1.25.0", "1.25.1", "1.25.2") if refused_version(version(tag))
    ]
    assert refused == ["1.24.4", "1.25.1"]


@pytest.mark.parametrize(
    ("tag", "refused"),
    [
        ("1.14.6", False), ("1.24.6", False), ("1.25.5", False), ("1.26.0", False), ("1.26.1", True),
        ("1.26.8", True), ("1.27.0", True), ("1.30.1", True),
    ],
)  # fmt: skip
def test_any_missing_file_is_refused_since_1_26_1_and_before_only_the_key_was_asked_for(tag, refused):
    assert needs_complete_set(version(tag)) is refused
    assert starts_without(version(tag), signing_key=True) is not refused
    assert starts_without(version(tag), signing_key=False) is False


def test_what_an_unknown_version_does_without_its_key_is_unknown():
    assert starts_without(None, signing_key=True) is None
    assert starts_without(None, signing_key=False) is False


def test_proxies_resign_at_once_only_with_both_flags_and_a_version_that_pushes():
    agent = {"PROXY_CONFIG_XDS_AGENT": "true"}
    assert pushes_roots(version("1.30.1"), MULTIROOT, agent)
    assert not pushes_roots(version("1.30.1"), {}, agent)
    assert not pushes_roots(version("1.30.1"), MULTIROOT, {})
    assert not pushes_roots(version("1.19.1"), MULTIROOT, agent)
    assert not pushes_roots(None, MULTIROOT, agent)


@pytest.mark.parametrize(
    ("tag", "follows"),
    [("1.0.7", False), ("1.0.8", True), ("1.1.0", False), ("1.1.7", False), ("1.1.8", True), ("1.3.5", True)],
)
def test_sidecars_follow_changed_roots_since_1_0_8_and_1_1_8(tag, follows):
    assert follows_changed_roots(version(tag)) is follows


@pytest.mark.parametrize(
    ("tag", "follows"),
    [("1.27.9", False), ("1.28.5", False), ("1.28.6", True), ("1.29.1", False), ("1.29.2", True), ("1.30.0", True)],
)
def test_ztunnels_follow_changed_roots_since_three_releases(tag, follows):
    assert ztunnel_follows_changed_roots(version(tag)) is follows


def test_reloading_is_a_matter_of_the_version_before_1_12_and_since_1_19():
    assert not reloads(version("1.11.0"), {"AUTO_RELOAD_PLUGIN_CERTS": "true"})
    assert reloads(version("1.19.0"), {})
