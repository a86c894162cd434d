"""istiod 1.14 against every trace recorded from the real one; slow clocks are scaled by the lab's variables."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.lab.client import ApiError
from tests.lab.istio import istiod_replay as lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.istio.istiod_replay import Istiod

QUICK = {
    "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "200ms",
    "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR": "false",
    "LAB_ROOT_POLL_SECONDS": "2",
}
NEVER = "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL"
CHECK = ["Check and rotate root cert.", "Root cert is not about to expire"]


def without_checks(lines: list[str]) -> list[str]:
    """Without the lines of checks that found nothing: how many there are depends on the moment."""
    return [line for line in lines if not any(text in line for text in CHECK)]


def leaf_of(trace: dict[str, Any], number: int) -> dict[str, Any]:
    """The description of the leaf in the n-th granted answer."""
    granted = [e for e in trace["events"] if e["source"] == "grpc" and e["code"] == "OK"]
    name = granted[number]["response"]["cert_chain"][0].strip().removeprefix("<pem:").removesuffix(">")
    wanted: dict[str, Any] = lab.recorded_shape(trace["certs"][name])
    return wanted


def test_01_a_first_start_makes_the_secret_and_spreads_the_root(tmp_path: Path) -> None:
    trace = lab.load("01-self-signed-first-start")
    second = next(t for t, what in lab.actions(trace) if what.startswith("second start"))

    async def script(istiod: Istiod) -> None:
        istiod.start()
        await istiod.ready()
        secret = await istiod.secret()
        assert {key: bool(value) for key, value in secret.items()} == {
            "ca-cert.pem": True,
            "ca-key.pem": True,
            "cert-chain.pem": False,
            "key.pem": False,
            "root-cert.pem": False,
        }
        assert secret["ca-key.pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
        item = await istiod.client.get("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
        assert item["type"] == "istio.io/ca-root"
        root = secret["ca-cert.pem"]
        assert lab.shape(x509.load_pem_x509_certificate(root.encode())) == lab.recorded_shape(trace["certs"]["cert-4"])
        await istiod.distributed(root)
        assert [policy for _, policy in await istiod.webhook("validating")] == ["Fail"]
        assert [policy for _, policy in await istiod.webhook("mutating")] == ["Ignore", "Ignore"]
        for namespace in ("kube-system", "kube-public", "kube-node-lease", "local-path-storage"):
            assert await istiod.config_map(namespace) is None
        await repairs(istiod, root)
        await answers(istiod, trace, root)
        chain = await istiod.presented()
        assert [lab.shape(c) for c in chain] == [lab.recorded_shape(trace["certs"]["cert-5"])]
        metrics = await istiod.metrics()
        end = x509.load_pem_x509_certificate(root.encode()).not_valid_after_utc
        assert metrics["citadel_server_root_cert_expiry_timestamp"] == end.timestamp()
        assert {name: value for name, value in metrics.items() if "expiry" not in name} == {
            "citadel_server_authentication_failure_count": 2,
            "citadel_server_csr_count": 6,
            'citadel_server_csr_sign_err_count{error="TTL_ERROR"}': 1,
            "citadel_server_success_cert_issuance_count": 3,
            'webhook_patch_attempts_total{name="istio-sidecar-injector"}': 4,
        }
        assert (await istiod.get("/ready", 8080))[0] == 200
        assert await istiod.exit() == 0
        assert lab.compared(istiod.log()) == lab.recorded(trace, end=second)
        before = len(istiod.changes)
        istiod.start()
        await istiod.ready()
        await istiod.logged("Switching to fail-close")
        assert lab.compared(istiod.log()) == lab.recorded(trace, begin=second)
        assert await istiod.exit() == 0
        written = {change["object"]["metadata"]["name"] for change in istiod.changes[before:]}
        assert written <= {"istio-namespace-controller-election"}
        assert await istiod.config_map() == root

    lab.run(tmp_path, script)


async def repairs(istiod: Istiod, root: str) -> None:
    """A new namespace, a hand edit, a deletion, a wiped caBundle."""
    await istiod.client.create(
        "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}
    )
    path = "/api/v1/namespaces/app/configmaps/istio-ca-root-cert"
    await istiod.client.patch(path, {"data": {"root-cert.pem": "garbage", "extra": "x"}})

    async def restored() -> bool:
        return await istiod.config_map("app") == root and await istiod.config_map("late") == root

    await istiod.until(restored)
    item = await istiod.client.get(path)
    assert item["data"]["extra"] == "x"
    assert item["metadata"]["labels"] == {"istio.io/config": "true"}
    await istiod.client.delete(path)
    await istiod.until(restored)
    hooks = f"{lab.WEBHOOKS}/mutatingwebhookconfigurations/istio-sidecar-injector"
    wiped = await istiod.client.get(hooks)
    for hook in wiped["webhooks"]:
        del hook["clientConfig"]["caBundle"]
    await istiod.client.replace(hooks, wiped)
    await istiod.distributed(root)


async def answers(istiod: Istiod, trace: dict[str, Any], root: str) -> None:
    """The six calls of the trace."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    first = await istiod.create_certificate(key=rsa_key)
    assert first.chain[1:] == (root,)
    assert lab.shape(first.leaf) == leaf_of(trace, 0)
    short = await istiod.create_certificate(seconds=3600)
    assert lab.shape(short.leaf) == leaf_of(trace, 1)
    refused = await istiod.create_certificate(seconds=91 * 86400)
    wanted = [(e["code"], e.get("details", "")) for e in trace["events"] if e["source"] == "grpc" and e["code"] != "OK"]
    other = await istiod.create_certificate(identity="spiffe://cluster.local/ns/app/sa/other")
    assert lab.shape(other.leaf) == leaf_of(trace, 2)
    audience = await istiod.create_certificate(token=await istiod.token("other"))
    garbage = await istiod.create_certificate(token="garbage")
    assert [(a.code, a.details) for a in (refused, audience, garbage)] == wanted


@pytest.mark.slow
def test_02_a_foreign_edit_is_adopted_at_the_next_check_and_distributed_at_the_next_poll(tmp_path: Path) -> None:
    trace = lab.load("02-self-signed-secret-edited")
    foreign, third = lab.root("cluster.local", ""), lab.root("cluster.local", "")

    async def script(istiod: Istiod) -> None:
        istiod.start(env=QUICK)
        await istiod.ready()
        old = (await istiod.secret())["ca-cert.pem"]
        await istiod.distributed(old)
        served = await istiod.presented()
        await istiod.patch_secret(ca_cert=foreign.pem, ca_key=foreign.key_pem)
        await istiod.logged("Successfully reloaded root cert into KeyCertBundle.")
        mixed = await istiod.create_certificate()
        assert mixed.signed_by == lab.identifier(foreign)
        assert mixed.chain[1:] == (foreign.pem,)
        assert await istiod.config_map() == old  # for up to one poll leaves chain to a root no ConfigMap holds
        assert await istiod.presented() == served
        await istiod.logged("regenerated istiod dns cert")
        await istiod.distributed(foreign.pem)
        assert await istiod.presented() != served
        await istiod.patch_secret(ca_cert=third.pem)
        await istiod.logged("failed to reload root cert into KeyCertBundle (the cert does not match the key)", 2)
        assert (await istiod.create_certificate()).signed_by == lab.identifier(foreign)
        await istiod.client.delete("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
        await istiod.logged("Failed on loading CA secret istio-system:istio-ca-secret.")
        assert (await istiod.create_certificate()).signed_by == lab.identifier(foreign)
        with pytest.raises(ApiError, match="404"):
            await istiod.secret()
        assert await istiod.exit() == 0
        # The order of a regenerated certificate's lines differs between the recordings (02 and 03).
        assert sorted(set(without_checks(lab.compared(istiod.log())))) == sorted(
            set(without_checks(lab.recorded(trace)))
        )

    lab.run(tmp_path, script)


@pytest.mark.slow
def test_03_the_root_is_renewed_in_its_grace_period_with_the_same_key(tmp_path: Path) -> None:
    trace = lab.load("03-self-signed-auto-renewal")
    env = QUICK | {
        "CITADEL_SELF_SIGNED_CA_CERT_TTL": "20s",
        "CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE": "90",
        "DEFAULT_WORKLOAD_CERT_TTL": "60s",
        "MAX_WORKLOAD_CERT_TTL": "90s",
        "LAB_ROOT_POLL_SECONDS": "3",
        "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "400ms",
    }

    async def script(istiod: Istiod) -> None:
        istiod.start(env=env)
        await istiod.ready()
        before = await istiod.secret()
        await istiod.logged("Root certificate rotation is completed successfully.")
        after = await istiod.secret()
        assert {key for key in after if after[key] != before[key]} == {"ca-cert.pem"}
        old, new = (x509.load_pem_x509_certificate(s["ca-cert.pem"].encode()) for s in (before, after))
        assert old.public_key() == new.public_key()
        assert old.subject.public_bytes() == new.subject.public_bytes()
        answer = await istiod.create_certificate(seconds=60)
        assert answer.chain[1] == after["ca-cert.pem"]
        assert lab.shape(answer.leaf)["lifetime_s"] == 180
        await istiod.logged("regenerated istiod dns cert")
        await istiod.distributed(after["ca-cert.pem"])
        assert await istiod.exit() == 0
        assert set(lab.compared(istiod.log())) == set(lab.recorded(trace))

    lab.run(tmp_path, script)


def test_04_a_plugin_ca_starts_as_recorded_and_ignores_a_swap_by_default(tmp_path: Path) -> None:
    trace = lab.load("04-plugin-start-and-ignored-swap")
    a = lab.root("A")
    a1, a2 = lab.intermediate(a), lab.intermediate(a)

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start()
        await istiod.ready()
        await istiod.distributed(a.pem)
        first = await istiod.create_certificate(key=rsa.generate_private_key(65537, 2048))
        assert first.chain[1:] == (a1.pem + a.pem, a.pem)
        assert lab.shape(first.leaf) == leaf_of(trace, 0)
        served = await istiod.presented()
        assert served[1:] == [a1.certificate, a.certificate]
        assert await istiod.presented(15017) == served
        istiod.volume.swap(lab.cacerts(a2, a2.pem + a.pem, a.pem))
        await asyncio.sleep(0.3)
        assert (await istiod.create_certificate()).signed_by == lab.identifier(a1)
        metrics = await istiod.metrics()
        end = a1.certificate.not_valid_after_utc.timestamp()
        assert metrics["citadel_server_cert_chain_expiry_timestamp"] == end
        assert metrics['webhook_patch_attempts_total{name="istio-sidecar-injector"}'] == 2
        with pytest.raises(ApiError, match="404"):
            await istiod.secret()
        assert await istiod.exit() == 0
        assert lab.compared(istiod.log()) == lab.recorded(trace)

    lab.run(tmp_path, script)


@pytest.mark.slow
def test_05_a_hot_reload_takes_a_new_intermediate_and_drops_every_change_of_roots(tmp_path: Path) -> None:
    trace = lab.load("05-plugin-hot-reload")
    a, b = lab.root("A"), lab.root("B")
    a1, a2, a3 = lab.intermediate(a), lab.intermediate(a, days=100), lab.intermediate(a)
    b1 = lab.intermediate(b)
    good = "Istiod certificates are reloaded"
    bad = "Failed to update new Plug-in CA certs"
    dropped = "Updating new ROOT-CA not supported"
    swaps = [
        (lab.cacerts(a2, a2.pem + a.pem, a.pem), good, a2),
        (lab.cacerts(a3, a3.pem + a.pem, a.pem, ca_key_pem=a2.key_pem), bad, a2),
        (lab.cacerts(b1, b1.pem + b.pem, a.pem), bad, a2),
        (lab.cacerts(a2, a2.pem + a.pem, a.pem + b.pem), dropped, a2),
        (lab.cacerts(a3, a3.pem + a.pem, a.pem + "\n"), dropped, a2),
        (lab.cacerts(b1, b1.pem + b.pem, b.pem), dropped, a2),
        (lab.cacerts(a3, a3.pem + a.pem, a.pem), good, a3),
    ]

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem))
        istiod.start(env={"AUTO_RELOAD_PLUGIN_CERTS": "true"})
        await istiod.ready()
        await istiod.distributed(a.pem)
        assert (await istiod.create_certificate()).signed_by == lab.identifier(a1)
        for files, last, signer in swaps:
            await istiod.swap(files, last)
            answer = await istiod.create_certificate()
            assert answer.signed_by == lab.identifier(signer)
            assert answer.chain[1:] == (signer.pem + a.pem, a.pem)
            assert (await istiod.presented())[1] == signer.certificate
        metrics = await istiod.metrics()
        # Stale: still the first intermediate's.
        end = a1.certificate.not_valid_after_utc.timestamp()
        assert metrics["citadel_server_cert_chain_expiry_timestamp"] == end
        assert metrics["citadel_server_csr_count"] == 8
        assert metrics['webhook_patch_attempts_total{name="istio-sidecar-injector"}'] == 4
        assert await istiod.exit() == 0
        assert lab.compared(istiod.log()) == lab.recorded(trace)

    lab.run(tmp_path, script)


def test_06_a_root_rotation_by_restarts_distributes_exactly_the_bytes_of_each_phase(tmp_path: Path) -> None:
    trace = lab.load("06-plugin-root-rotation-by-restart")
    a, b = lab.root("A"), lab.root("B")
    a1, b1 = lab.intermediate(a), lab.intermediate(b)
    phases = [
        (lab.cacerts(a1, a1.pem + a.pem, a.pem), (a1.pem + a.pem, a.pem)),
        (lab.cacerts(a1, a1.pem + a.pem, a.pem + b.pem), (a1.pem + a.pem, a.pem + b.pem)),
        (lab.cacerts(b1, b1.pem + b.pem, a.pem + b.pem), (b1.pem + b.pem, a.pem + b.pem)),
        (lab.cacerts(b1, b1.pem + b.pem, b.pem), (b1.pem + b.pem, b.pem)),
    ]

    async def script(istiod: Istiod) -> None:
        for number, (files, chain) in enumerate(phases):
            istiod.volume.swap(files)
            before = len(istiod.changes)
            istiod.start()
            await istiod.ready()
            await istiod.distributed(chain[1])
            assert (await istiod.create_certificate()).chain[1:] == chain
            metrics = await istiod.metrics()
            patches = 1 if number == 2 else 2  # the bundle of phase 2 is that of phase 1
            assert metrics['webhook_patch_attempts_total{name="istio-sidecar-injector"}'] == patches
            assert await istiod.exit() == 0
            names = {c["object"]["metadata"]["name"] for c in istiod.changes[before:]}
            if number == 2:
                assert names <= {"istio-namespace-controller-election"}
        assert lab.compared(istiod.lines) == lab.recorded(trace)

    lab.run(tmp_path, script)


BAD_STARTS: dict[str, dict[str, str | None]] = {
    "case: key of another pair": {"ca_key_pem": "other key"},
    "case: root-cert.pem of another hierarchy": {"root_cert_pem": "other root"},
    "case: root-cert.pem missing": {"root_cert_pem": None},
    "case: cert-chain.pem missing": {"cert_chain_pem": None},
    "case: ca-cert.pem missing": {"ca_cert_pem": None},
    "case: ca-cert.pem not a CA": {},
    "case: intermediate expired": {},
    "case: ca-cert.pem garbage": {"ca_cert_pem": "garbage\n"},
}


def test_07_bad_material_ends_the_start_with_code_255_in_the_recorded_words(tmp_path: Path) -> None:
    trace = lab.load("07-plugin-bad-start")
    a, b = lab.root("A"), lab.root("B")
    a1 = lab.intermediate(a)
    others = {"other key": lab.intermediate(a).key_pem, "other root": b.pem}
    signers = {
        "case: ca-cert.pem not a CA": lab.intermediate(a, ca=False),
        "case: intermediate expired": lab.intermediate(a, days=-1),
    }
    marks = [(t, what) for t, what in lab.actions(trace) if what.startswith("case: ")]
    assert set(BAD_STARTS) == {what for _, what in marks} - {
        "case: cert-chain.pem empty",
        "case: ca-key.pem missing (three files left)",
    }

    async def script(istiod: Istiod) -> None:
        for (begin, what), (end, _) in zip(marks, [*marks[1:], (10**9, "")], strict=True):
            if what not in BAD_STARTS:
                continue
            signer = signers.get(what, a1)
            changed = {k: others.get(v, v) if v is not None else None for k, v in BAD_STARTS[what].items()}
            istiod.volume.swap(lab.cacerts(signer, signer.pem + a.pem, a.pem, **changed))
            istiod.start()
            assert await istiod.exit(terminate=False) == 255, what
            assert lab.compared(istiod.log()) == lab.recorded(trace, begin, end), what

    lab.run(tmp_path, script)


def test_07_an_empty_chain_is_accepted_and_a_missing_key_falls_back_to_a_self_signed_ca(tmp_path: Path) -> None:
    trace = lab.load("07-plugin-bad-start")
    a = lab.root("A")
    a1 = lab.intermediate(a)
    marks = dict((what, t) for t, what in lab.actions(trace))  # noqa: C402 - the pairs are the other way round

    async def script(istiod: Istiod) -> None:
        istiod.volume.swap(lab.cacerts(a1, "", a.pem))
        istiod.start()
        await istiod.ready()
        await istiod.distributed(a.pem)
        assert len(await istiod.presented()) == 1
        assert await istiod.exit() == 0
        begin, end = marks["case: cert-chain.pem empty"], marks["case: ca-cert.pem missing"]
        assert lab.compared(istiod.log()) == lab.recorded(trace, begin, end)
        istiod.volume.swap(lab.cacerts(a1, a1.pem + a.pem, a.pem, ca_key_pem=None))
        istiod.start()
        await istiod.ready()
        own = (await istiod.secret())["ca-cert.pem"]
        await istiod.distributed(own + a.pem)  # root-cert.pem is added to the self-signed root
        assert (await istiod.create_certificate()).chain[1:] == (own + a.pem,)
        assert await istiod.exit() == 0
        begin, end = marks["case: ca-key.pem missing (three files left)"], marks["case: ca-cert.pem not a CA"]
        assert lab.compared(istiod.log()) == lab.recorded(trace, begin, end)

    lab.run(tmp_path, script)


@pytest.mark.slow
def test_10_two_certificates_in_the_secret_rotate_the_root_without_cacerts(tmp_path: Path) -> None:
    trace = lab.load("10-self-signed-two-certs-in-secret")
    new = lab.root("cluster.local", "")

    async def script(istiod: Istiod) -> None:
        istiod.start(env=QUICK)
        await istiod.ready()
        old = await istiod.secret()
        first = x509.load_pem_x509_certificate(old["ca-cert.pem"].encode())
        assert (await istiod.create_certificate()).chain[1:] == (old["ca-cert.pem"],)
        await istiod.exit()
        states = [
            (old["ca-cert.pem"] + new.pem, old["ca-key.pem"], lab.identifier(first)),
            (new.pem + old["ca-cert.pem"], new.key_pem, lab.identifier(new)),
            (new.pem, new.key_pem, lab.identifier(new)),
        ]
        for text, key, signer in states:
            data = {"ca-cert.pem": text, "ca-key.pem": key}
            encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
            path = "/api/v1/namespaces/istio-system/secrets/istio-ca-secret"
            await istiod.client.patch(path, {"data": encoded})
            istiod.start(env=QUICK)
            await istiod.ready()
            await istiod.distributed(text)
            answer = await istiod.create_certificate()
            assert answer.signed_by == signer
            assert answer.chain[1:] == (text,)
            await istiod.logged("Check and rotate root cert.", 2)
            assert len(await istiod.presented()) == 1
            assert await istiod.exit() == 0
        assert without_checks(lab.compared(istiod.lines)) == without_checks(lab.recorded(trace))

    lab.run(tmp_path, script)
