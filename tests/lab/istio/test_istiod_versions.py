"""Which version of istiod does what: the table of rules, and each kind of behaviour on a running one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from infra.lab.istio import wire
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod.plugin import accepts
from infra.lab.istio.istiod.versions import ChainElements, RootChange, Rules, parse
from tests.lab.istio import istiod_replay as lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.istio.istiod_replay import Istiod

MULTI_ROOT = {"ISTIO_MULTIROOT_MESH": "true"}
RELOADED = "Istiod certificates are reloaded"

# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "env", "reloads", "root_change"),
    [
        ("1.11.8", {"AUTO_RELOAD_PLUGIN_CERTS": "true"}, False, RootChange.NEVER),
        ("1.12.0", {}, False, RootChange.NEVER),
        ("1.12.0", {"AUTO_RELOAD_PLUGIN_CERTS": "true"}, True, RootChange.NEVER),
        ("1.17.8", {}, False, RootChange.NEVER),
        ("1.17.8", {"AUTO_RELOAD_PLUGIN_CERTS": "true", **MULTI_ROOT}, True, RootChange.NEVER),
        ("1.18.0", {}, True, RootChange.NEVER),
        ("1.18.7", {"AUTO_RELOAD_PLUGIN_CERTS": "false"}, False, RootChange.NEVER),
        ("1.19.0", {"AUTO_RELOAD_PLUGIN_CERTS": "false"}, True, RootChange.NEVER),
        ("1.19.10", MULTI_ROOT, True, RootChange.NEVER),
        ("1.20.0", {}, True, RootChange.DISABLED),
        ("1.20.0", MULTI_ROOT, True, RootChange.BYTES),
        ("1.29.6", MULTI_ROOT, True, RootChange.BYTES),
        ("1.30.0-rc.0", MULTI_ROOT, True, RootChange.CERTIFICATES),
        ("1.30.1-distroless", MULTI_ROOT, True, RootChange.CERTIFICATES),
        ("1.30.1", {"ISTIO_MULTIROOT_MESH": "no"}, True, RootChange.DISABLED),
    ],
)
def test_what_a_running_istiod_follows_depends_on_version_and_environment(
    tag: str, env: dict[str, str], reloads: bool, root_change: RootChange
) -> None:
    rules = Rules.of(tag, env)
    assert (rules.reloads, rules.root_change) == (reloads, root_change)


@pytest.mark.parametrize(
    ("tag", "style"),
    [
        ("1.14.6", ChainElements.WHOLE_FILES),
        ("1.24.3", ChainElements.WHOLE_FILES),
        ("1.24.4", ChainElements.EACH_CERTIFICATE),
        ("1.24.5", ChainElements.ROOTS_WHOLE),
        ("1.25.0", ChainElements.WHOLE_FILES),
        ("1.25.1", ChainElements.EACH_CERTIFICATE),
        ("1.25.2", ChainElements.ROOTS_WHOLE),
        ("1.26.0", ChainElements.ROOTS_WHOLE),
        ("1.30.1", ChainElements.ROOTS_WHOLE),
    ],
)
def test_how_an_answer_is_split_into_elements_depends_on_the_version(tag: str, style: ChainElements) -> None:
    assert Rules.of(tag, {}).chain_elements is style


def test_later_rules_begin_with_their_version() -> None:
    def of(tag: str, **env: str) -> Rules:
        return Rules.of(tag, env)

    assert [of(tag).complete_set for tag in ("1.26.0", "1.26.1", "1.27.0")] == [False, True, True]
    assert [of(tag).crl for tag in ("1.26.8", "1.27.0")] == [False, True]
    assert not of("1.27.0", PILOT_ENABLE_CA_CRL="false").crl
    assert [of(tag).expiry_seconds for tag in ("1.22.8", "1.23.0")] == [False, True]
    assert [of(tag).records_expiry_on_reload for tag in ("1.23.6", "1.24.0")] == [False, True]
    assert ["kube-system" in of(tag).ignored_namespaces for tag in ("1.20.8", "1.21.0")] == [True, False]
    assert [of(tag).clamps_leaves for tag in ("1.28.6", "1.28.7", "1.29.2", "1.29.3", "1.30.0")] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert [of(tag, USE_CACERTS_FOR_SELF_SIGNED_CA="true").cacerts_for_self_signed for tag in ("1.19.0", "1.20.0")] == [
        False,
        True,
    ]
    assert [of(tag).notifies_of_self_signed_roots for tag in ("1.20.8", "1.21.0")] == [False, True]
    assert [of(tag).root_in_secret for tag in ("1.19.10", "1.20.0")] == [False, True]


@pytest.mark.parametrize(
    ("tag", "version"),
    [("1.30.1", (1, 30, 1)), ("v1.14", (1, 14, 1000)), ("asm-1-30", None), ("latest", None), ("1-30", (1, 30, 1000))],
)
def test_a_tag_is_a_version_or_is_refused(tag: str, version: tuple[int, int, int] | None) -> None:
    if version is None:
        with pytest.raises(ValueError, match=f"not an Istio version: '{tag}'"):
            parse(tag)
    else:
        assert parse(tag) == version


# --- the acceptance of a changed root-cert.pem ------------------------------------------------------------------------

A, B, C = (lab.root(name).pem for name in "ABC")


@pytest.mark.parametrize(
    ("current", "new", "by_bytes", "by_certificates"),
    [
        pytest.param(A, A + B, True, True, id="appended"),
        pytest.param(A, B + A, True, True, id="prepended"),
        pytest.param(A + B, B, True, True, id="first removed"),
        pytest.param(A + B, A, True, True, id="last removed"),
        pytest.param(A, B, False, False, id="replaced"),
        pytest.param(A + B, B + C, False, False, id="overlapping"),
        pytest.param(A + B, B + A, False, True, id="reordered"),
        pytest.param(A + B, B + C + A, False, True, id="in between"),
        pytest.param(A + B + C, A + C, False, True, id="middle removed"),
        pytest.param(A, A + "\n", True, True, id="a newline more"),
        pytest.param(A + "\n" + B, A + B, False, True, id="a blank line less"),
        pytest.param(A, (A + B).replace("\n", "\r\n"), False, True, id="CRLF"),
        pytest.param(A + B, A + B + B, True, True, id="repeated"),
        pytest.param(A, A + "# comment\n" + B, True, True, id="comment"),
        pytest.param(A, "", True, False, id="emptied"),
        pytest.param(A, "garbage", False, False, id="garbage"),
        pytest.param(A, A.replace("CERTIFICATE", "TRUSTED CERTIFICATE"), False, False, id="another kind of block"),
    ],
)
def test_a_changed_root_bundle_is_accepted_by_bytes_up_to_1_29_and_by_certificates_from_1_30(
    current: str, new: str, by_bytes: bool, by_certificates: bool
) -> None:
    texts = current.encode(), new.encode()
    assert accepts(*texts, RootChange.BYTES) is by_bytes
    assert accepts(*texts, RootChange.CERTIFICATES) is by_certificates
    assert not accepts(*texts, RootChange.NEVER)
    assert not accepts(*texts, RootChange.DISABLED)


# --- running ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["1.20.8", "1.29.6", "1.30.1"])
def test_with_multi_root_on_a_root_is_added_and_removed_without_a_restart_in_the_lines_of_the_version(
    tmp_path: Path, tag: str
) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1, b1 = lab.intermediate(a), lab.intermediate(b)
    both = a.pem + b.pem
    explained = parse(tag) >= (1, 21, 0)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start(env=MULTI_ROOT)
        await istiod.ready()
        await istiod.distributed(a.pem)
        lines = await istiod.swap(lab.cacerts(a1, a1.pem + a.pem, both), RELOADED)
        told = [
            "Update Istiod cacerts",
            "Using istiod file format for signing ca files",
            "Updating new ROOT-CA",
            *(["update root cert and generate new dns certs", "Update trust anchor with new root cert"] * explained),
            "trustBundle\tupdating Source IstioCA with certs P",
            "Istiod has detected the newly added intermediate CA and updated its key and certs accordingly",
        ]
        assert [line.removeprefix("T\tinfo\t") for line in lines[: len(told)]] == told
        assert RELOADED in lines[-1]
        assert all("x509 cert - Issuer" in line for line in lines[len(told) : -1])
        await istiod.distributed(both)
        assert (await istiod.create_certificate()).chain[-1] == both
        await istiod.swap(lab.cacerts(b1, b1.pem + b.pem, both), RELOADED)
        answer = await istiod.create_certificate()
        assert answer.signed_by == lab.identifier(b1)
        lines = await istiod.swap(lab.cacerts(b1, b1.pem + b.pem, b.pem), RELOADED)
        assert any("Updating new ROOT-CA" in line for line in lines)
        await istiod.distributed(b.pem)
        lines = await istiod.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem), "ROOT-CA not supported")
        assert lines[-1] == "T\twarn\tUpdating new ROOT-CA not supported"
        assert (await istiod.create_certificate()).signed_by == lab.identifier(b1)
        assert not any("peer cert verifier" in line for line in istiod.log()[-12:])  # only at start

    lab.run(tmp_path, script, tag)


@pytest.mark.parametrize("tag", ["1.20.8", "1.30.1"])
def test_with_multi_root_off_a_changed_root_drops_the_whole_update(tmp_path: Path, tag: str) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1, a2 = lab.intermediate(a), lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start()
        await istiod.ready()
        lines = await istiod.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem + b.pem), "Multi root is disabled")
        assert lines[-1] == "T\twarn\tMulti root is disabled, updating new ROOT-CA not supported"
        assert (await istiod.create_certificate()).signed_by == lab.identifier(a1)
        await istiod.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem), RELOADED)
        answer = await istiod.create_certificate()
        assert answer.signed_by == lab.identifier(a2)
        assert (await istiod.presented())[1] == a2.certificate

    lab.run(tmp_path, script, tag)


@pytest.mark.parametrize(
    ("tag", "chain"),
    [
        ("1.24.3", ["I A", "A B"]),
        ("1.24.4", ["I", "A", "A", "B"]),
        ("1.24.5", ["I", "A", "A B"]),
        ("1.25.1", ["I", "A", "A", "B"]),
    ],
)
def test_the_elements_of_an_answer_are_those_of_the_version(tmp_path: Path, tag: str, chain: list[str]) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1 = lab.intermediate(a)
    texts = {"I": a1.pem, "A": a.pem, "B": b.pem}

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem + b.pem))
        istiod.start()
        await istiod.ready()
        answer = await istiod.create_certificate()
        assert list(answer.chain[1:]) == ["".join(texts[part] for part in element.split()) for element in chain]

    lab.run(tmp_path, script, tag)


@pytest.mark.parametrize("missing", ["ca_key_pem", "ca_cert_pem", "root_cert_pem", "cert_chain_pem"])
def test_from_1_26_1_on_a_part_of_the_files_is_no_start(tmp_path: Path, missing: str) -> None:
    a = lab.root("A")
    a1 = lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem, **{missing: None}))
        istiod.start()
        assert await istiod.exit(terminate=False) == 255
        assert istiod.log()[-1].endswith(
            "failed to create discovery service: failed to create CA: failed to create an istiod CA: "
            "incomplete signing CA bundle detected"
        )

    lab.run(tmp_path, script, "1.30.1")


def test_a_secret_of_kubernetes_io_tls_is_a_plugin_ca_whose_chain_is_both_files(tmp_path: Path) -> None:
    a = lab.root("A")
    a1, a2 = lab.intermediate(a), lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap({"tls.crt": a1.pem, "tls.key": a1.key_pem, "ca.crt": a.pem})
        istiod.start()
        await istiod.ready()
        await istiod.distributed(a.pem)
        assert (await istiod.create_certificate()).chain[1:] == (a1.pem, a.pem, a.pem)
        lines = await istiod.swap({"tls.crt": a2.pem, "tls.key": a2.key_pem, "ca.crt": a.pem}, RELOADED)
        assert lines[1] == "T\tinfo\tUsing kubernetes.io/tls secret type for signing ca files"
        assert (await istiod.create_certificate()).signed_by == lab.identifier(a2)

    lab.run(tmp_path, script, "1.30.1")


def test_replicas_reload_each_in_its_own_time_and_a_dead_watcher_never(tmp_path: Path) -> None:
    a = lab.root("A")
    a1, a2 = lab.intermediate(a), lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        others = [replace(istiod, lines=[], changes=[], pod=f"other-{n}") for n in range(2)]
        for other in others:
            other.volume = istiod.volume
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start()
        late, dead = others
        try:
            late.start(annotations={"lab.capstan.dev/reload-delay-seconds": "0.6"})
            dead.start(annotations={"lab.capstan.dev/cacerts-watcher-dead": "true"})
            for replica in (istiod, late, dead):
                await replica.ready()
            istiod.volume.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem))
            await istiod.logged(RELOADED, 2)
            assert (await istiod.presented())[1] == a2.certificate
            assert (await late.presented())[1] == a1.certificate
            await late.logged(RELOADED, 2)
            assert (await late.create_certificate()).signed_by == lab.identifier(a2)
            assert (await dead.create_certificate()).signed_by == lab.identifier(a1)
            item = await istiod.client.get(
                "/api/v1/namespaces/istio-system/configmaps/istio-namespace-controller-election"
            )
            record = json.loads(item["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"])
            assert record["holderIdentity"] == "istiod-0"
            assert record["leaseDurationSeconds"] == 30
        finally:
            for replica in others:
                await replica.exit()

    lab.run(tmp_path, script, "1.30.1")


def test_another_replica_goes_on_distributing_when_the_leader_ends(tmp_path: Path) -> None:
    a = lab.root("A")
    a1 = lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        other = replace(istiod, lines=[], changes=[], pod="other")
        istiod.start(env={"LAB_LEADER_SECONDS": "0.4"})
        await istiod.ready()
        await istiod.distributed(a.pem)
        try:
            other.start(env={"LAB_LEADER_SECONDS": "0.4"})
            await other.ready()
            await asyncio.sleep(0.3)
            assert not any("starting namespace controller" in line for line in other.log())
            await istiod.exit()
            await istiod.client.create(
                "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}
            )
            await istiod.until(lambda: _holds(istiod, "late", a.pem))
            assert any("starting namespace controller" in line for line in other.log())
        finally:
            await other.exit()

    lab.run(tmp_path, script, "1.30.1")


def test_istiods_of_one_revision_with_different_roots_fight_over_the_webhooks_at_a_bounded_pace(tmp_path: Path) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1, b1 = lab.intermediate(a), lab.intermediate(b)

    async def script(istiod: Istiod) -> None:
        other = replace(istiod, lines=[], changes=[], pod="other")
        other.volume = lab.Volume(istiod.directory / "other-cacerts")
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        other.volume.swap(lab.cacerts(b1, b1.pem + b.pem, b.pem))
        istiod.start()
        await istiod.ready()
        await istiod.distributed(a.pem)
        try:
            other.start()
            await other.ready()
            await asyncio.sleep(0.5)
            written = [c["object"] for c in istiod.changes if c["object"].get("kind") == "MutatingWebhookConfiguration"]
            bundles_seen = [item["webhooks"][0]["clientConfig"]["caBundle"] for item in written]
            assert 3 <= len(written) <= 10  # five each, then one a minute each
            assert len(set(bundles_seen)) == 2
        finally:
            await other.exit()

    lab.run(tmp_path, script, "1.30.1")


def test_client_certificates_are_checked_against_the_roots_of_the_start(tmp_path: Path) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1, b1 = lab.intermediate(a), lab.intermediate(b)

    async def ask(istiod: Istiod, answer: lab.Answer, key: Any) -> lab.Answer:
        """With the leaf of an earlier answer and no token."""
        pair = (lab.Authority(answer.leaf, key).key_pem.encode(), "".join(answer.chain[:-1]).encode())
        return await istiod.create_certificate(token="", client=pair)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start(env=MULTI_ROOT)
        await istiod.ready()
        key = a1.key
        by_a = await istiod.create_certificate(key=key)
        again = await ask(istiod, by_a, key)
        assert again.code == "OK"
        names = again.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://cluster.local/ns/app/sa/web"]
        await istiod.swap(lab.cacerts(b1, b1.pem + b.pem, a.pem + b.pem), RELOADED)
        by_b = await istiod.create_certificate(key=key)
        assert by_b.signed_by == lab.identifier(b1)
        assert (await ask(istiod, by_b, key)).code != "OK"  # B came after the start
        await istiod.swap(lab.cacerts(b1, b1.pem + b.pem, b.pem), RELOADED)
        assert (await ask(istiod, by_a, key)).code == "OK"  # and A is still believed
        await istiod.exit()
        istiod.start(env=MULTI_ROOT)
        await istiod.ready()
        assert (await ask(istiod, by_b, key)).code == "OK"
        assert (await ask(istiod, by_a, key)).code != "OK"

    lab.run(tmp_path, script, "1.30.1")


def test_a_bundle_is_pushed_when_its_text_changes_and_only_with_multi_root(tmp_path: Path) -> None:
    a, b = lab.root("A"), lab.root("B")
    a1, a2 = lab.intermediate(a), lab.intermediate(a)

    async def follow(istiod: Istiod, seen: list[str]) -> None:
        metadata = (("authorization", f"Bearer {await istiod.token()}"),)
        async with istiod.channel() as channel:
            stream = channel.unary_stream(wire.TRUST_BUNDLES)(b"", metadata=metadata)
            async for message in stream:
                seen.append(wire.TrustBundle.decode(message).pem)

    async def script(istiod: Istiod) -> None:
        seen: list[str] = []
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start(env=MULTI_ROOT)
        await istiod.ready()
        following = asyncio.create_task(follow(istiod, seen))
        await istiod.until(lambda: _true(seen == [a.pem]))
        await istiod.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem), RELOADED)
        await istiod.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem + b.pem), RELOADED)
        await istiod.until(lambda: _true(len(seen) > 1))
        # A third time the same two roots, as text another: the way to make agents ask for leaves again.
        await istiod.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem + b.pem + b.pem), RELOADED)
        await istiod.until(lambda: _true(len(seen) > 2))
        assert seen == [a.pem, a.pem + b.pem, a.pem + b.pem + b.pem]
        clients = json.loads((await istiod.get("/debug/connections"))[1])
        assert clients["totalClients"] == 0  # the token is of no pod
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    lab.run(tmp_path, script, "1.30.1")


async def _true(value: bool) -> bool:
    return value


def test_ports_answer_as_those_of_istiod(tmp_path: Path) -> None:
    a = lab.root("A")
    a1 = lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start()
        await istiod.ready()
        answer = await istiod.create_certificate(port=15010)
        assert (answer.code, answer.details) == (
            "UNIMPLEMENTED",
            "unknown service istio.v1.auth.IstioCertificateService",
        )
        assert (await istiod.get("/version"))[1] == "1.30.1-lab-Clean"
        assert (await istiod.get("/debug/syncz"))[1] == "[]"
        assert (await istiod.get("/nothing"))[0] == 404
        metrics = await istiod.metrics()
        assert metrics["citadel_server_root_cert_expiry_seconds"] == pytest.approx(3650 * 86400, abs=120)
        refused = await istiod.create_certificate(token="garbage")
        assert refused.code == "UNAUTHENTICATED"
        assert "error\tsecurity\tFailed to authenticate client from 127." in istiod.log()[-1]
        refused = await istiod.create_certificate(metadata={"ImpersonatedIdentity": "spiffe://cluster.local/ns/a/sa/b"})
        assert refused.details == "request impersonation authentication failure"
        assert await istiod.config_map("kube-system") == a.pem

    lab.run(tmp_path, script, "1.30.1")


@pytest.mark.slow
def test_from_1_21_on_an_edited_self_signed_root_is_distributed_at_once(tmp_path: Path) -> None:
    new = lab.root("cluster.local", "")
    env = {
        "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "300ms",
        "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR": "false",
    }

    async def script(istiod: Istiod) -> None:
        istiod.start(env=env)  # the poll stays at 60 s
        await istiod.ready()
        old = await istiod.secret()
        assert old["root-cert.pem"] == old["ca-cert.pem"]
        await istiod.distributed(old["ca-cert.pem"])
        await istiod.patch_secret(ca_cert=new.pem, ca_key=new.key_pem)
        await istiod.distributed(new.pem)
        await istiod.logged("update root cert and generate new dns certs")
        assert not any("regenerated istiod dns cert" in line for line in istiod.log())

    lab.run(tmp_path, script, "1.30.1")


def test_with_its_own_flag_a_self_signed_ca_is_made_in_cacerts(tmp_path: Path) -> None:
    async def script(istiod: Istiod) -> None:
        istiod.start(env={"USE_CACERTS_FOR_SELF_SIGNED_CA": "true"})
        await istiod.ready()
        item = await istiod.client.get("/api/v1/namespaces/istio-system/secrets/cacerts")
        assert item["type"] == "istio.io/ca-root"
        assert item["data"]["istio-generated"] == ""

    lab.run(tmp_path, script, "1.30.1")


# --- checks before a bundle is taken ----------------------------------------------------------------------------------


def verified(signer: Any, chain: str, roots: str, crl: str = "", tag: str = "1.30.1") -> bundles.Bundle:
    texts = (signer.pem, signer.key_pem, chain, roots, crl)
    encoded = [text.encode() for text in texts]
    return bundles.verified(*encoded, rules=Rules.of(tag, {}), now=datetime.now(UTC))


def revocations(*issuers: Any) -> str:
    now = datetime.now(UTC)
    found = []
    for issuer in issuers:
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        builder = builder.last_update(now).next_update(now + timedelta(days=1))
        found.append(builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())
    return "".join(found)


def test_revocation_lists_must_cover_every_authority_of_the_chain() -> None:
    a, b = lab.root("A"), lab.root("B")
    a1 = lab.intermediate(a)
    chain = a1.pem + a.pem
    assert verified(a1, chain, a.pem, revocations(a, a1)).crl_pem
    with pytest.raises(bundles.BundleError, match="missing CRLs for CAs: CN=Intermediate CA,O=cluster1"):
        verified(a1, chain, a.pem, revocations(a))
    with pytest.raises(bundles.BundleError, match="missing CRLs"):
        verified(a1, chain, a.pem, revocations(b))


def test_a_bundle_must_chain_parse_and_match() -> None:
    a = lab.root("A")
    a1, other = lab.intermediate(a), lab.intermediate(a)
    mixed = replace(a1, key=other.key)
    with pytest.raises(bundles.BundleError, match="tls: private key does not match public key"):
        verified(mixed, a1.pem, a.pem)
    with pytest.raises(bundles.BundleError, match=r"does not match the key$"):
        verified(mixed, a1.pem, a.pem, tag="1.20.8")
    with pytest.raises(bundles.BundleError, match="signed by unknown authority"):
        verified(a1, a1.pem, lab.root("A", "Another").pem)
    assert verified(a1, "", "junk\n" + a.pem + "more junk\n").signer == a1.certificate


# --- who asks, and who gets -------------------------------------------------------------------------------------------


async def bound_token(istiod: Istiod, pod: str, account: str, node: str) -> str:
    """A pod on a node, and a token that is bound to it."""
    spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "example/image:1"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "app"}, "spec": spec}
    await istiod.client.create("/api/v1/namespaces/app/pods", body)
    reference = {"kind": "Pod", "apiVersion": "v1", "name": pod}
    request = {"audiences": ["istio-ca"], "expirationSeconds": 3600, "boundObjectRef": reference}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": request}
    path = f"/api/v1/namespaces/app/serviceaccounts/{account}/token"
    return str((await istiod.client.create(path, body))["status"]["token"])


def test_a_node_agent_gets_leaves_for_its_own_node_only_and_connections_are_listed_by_pod(tmp_path: Path) -> None:
    a = lab.root("A")
    a1 = lab.intermediate(a)
    other = "spiffe://cluster.local/ns/app/sa/other"

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start(env={"CA_TRUSTED_NODE_ACCOUNTS": "app/web"})
        await istiod.ready()
        agent = await bound_token(istiod, "agent", "web", "node-1")
        await bound_token(istiod, "far", "other", "node-2")
        wanted = {"ImpersonatedIdentity": other}
        refused = await istiod.create_certificate(token=agent, metadata=wanted)
        assert refused.details == "request impersonation authentication failure"
        assert 'no instances of "app/other" found on node "node-1"' in istiod.log()[-1]
        near = await bound_token(istiod, "near", "other", "node-1")
        granted = await istiod.create_certificate(token=agent, metadata=wanted)
        names = granted.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [other]
        refused = await istiod.create_certificate(token=near, metadata={"ImpersonatedIdentity": "spiffe://x/ns/a/sa/b"})
        assert refused.code == "UNAUTHENTICATED"
        async with istiod.channel() as channel:
            metadata = (("authorization", f"Bearer {near}"),)
            stream = channel.unary_stream(wire.TRUST_BUNDLES)(b"", metadata=metadata)
            await stream.wait_for_connection()
            found = json.loads((await istiod.get("/debug/syncz"))[1])
            assert [entry["proxy"] for entry in found] == ["near.app"]
            clients = json.loads((await istiod.get("/debug/connections"))[1])
            assert clients["totalClients"] == 1
            assert clients["clients"][0]["connectionId"].startswith("near.app-")
            stream.cancel()

    lab.run(tmp_path, script, "1.30.1")


def test_namespaces_outside_the_discovery_selectors_get_no_roots(tmp_path: Path) -> None:
    a = lab.root("A")
    a1 = lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        mesh = istiod.directory / "istiod-layer-0/etc/istio/config/mesh"
        mesh.parent.mkdir(parents=True)
        mesh.write_text("trustDomain: mesh.example\ndiscoverySelectors:\n- matchLabels: {mesh: 'on'}\n")
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        await istiod.client.patch("/api/v1/namespaces/app", {"metadata": {"labels": {"mesh": "on"}}})
        istiod.start()
        await istiod.ready()
        await istiod.until(lambda: _holds(istiod, "app", a.pem))
        assert await istiod.config_map("default") is None
        await istiod.client.patch("/api/v1/namespaces/default", {"metadata": {"labels": {"mesh": "on"}}})
        await istiod.until(lambda: _holds(istiod, "default", a.pem))
        names = (await istiod.create_certificate()).leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        identities = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        assert identities == ["spiffe://mesh.example/ns/app/sa/web"]

    lab.run(tmp_path, script, "1.30.1")


async def _holds(istiod: Istiod, namespace: str, text: str) -> bool:
    return await istiod.config_map(namespace) == text


def test_revocation_lists_are_distributed_and_the_metrics_follow_a_reload(tmp_path: Path) -> None:
    a = lab.root("A")
    a1, a2 = lab.intermediate(a), lab.intermediate(a, days=100)
    path = "/api/v1/namespaces/app/configmaps/istio-ca-crl"
    listed = revocations(a, a2)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start()
        await istiod.ready()
        await istiod.distributed(a.pem)
        found = await istiod.client.get(path)
        assert found["data"] == {"ca-crl.pem": ""}
        files = lab.cacerts(a2, a2.pem + a.pem, a.pem) | {"ca-crl.pem": listed}
        lines = await istiod.swap(files, RELOADED)
        assert [line for line in lines if "CRL" in line] == [
            "T\tinfo\tDetected CRL file",
            "T\tinfo\tUpdating CRL data",
            "T\tinfo\tIstiod has detected the newly added CRL file and updated its CRL accordingly",
        ]

        async def there() -> bool:
            return bool((await istiod.client.get(path))["data"] == {"ca-crl.pem": listed})

        await istiod.until(there)
        metrics = await istiod.metrics()
        end = a2.certificate.not_valid_after_utc.timestamp()
        assert metrics["citadel_server_cert_chain_expiry_timestamp"] == end

    lab.run(tmp_path, script, "1.30.1")
