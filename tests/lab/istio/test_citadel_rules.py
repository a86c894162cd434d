"""The lab's Citadel where no recorded trace looks: each rule is one of its source (istio 1.3.8 and 1.4.10,
security/cmd/istio_ca and security/pkg).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.lab.istio import istiod_replay as lab
from tests.lab.istio.citadel_replay import Citadel, run

if TYPE_CHECKING:
    from pathlib import Path

SELF_SIGNED = "--self-signed-ca=true"
MIN_GRACE = "CITADEL_WORKLOAD_CERT_MIN_GRACE_PERIOD"


@pytest.mark.parametrize("version", ["1.3.8", "1.4.10"])
def test_a_leaf_is_renewed_ten_minutes_before_its_end_however_short_its_life_is(tmp_path: Path, version: str) -> None:
    async def script(citadel: Citadel) -> None:
        await citadel.start(0.4, args=(SELF_SIGNED, "--workload-cert-ttl=90s"), version=version)
        why = "got a certificate that should be renewed now"
        await citadel.logged(f"Refreshing about to expire secret cit-a/istio.istio.web: {why}", 2)
        text = "gracePeriod (1m30s * 0.000000) = 45s is less than minGracePeriod 10m0s. Apply minGracePeriod."
        assert any(text in line for line in citadel.log()) is (version == "1.4.10")

    run(tmp_path, script)


def test_a_grace_period_of_ones_own_lets_short_leaves_live_their_half(tmp_path: Path) -> None:
    async def script(citadel: Citadel) -> None:
        args = (SELF_SIGNED, "--workload-cert-ttl=90s", "--workload-cert-grace-period-ratio=0.1")
        await citadel.start(0.3, args=args, env={MIN_GRACE: "0s"})
        await citadel.logged("is created successfully", 3)
        await asyncio.sleep(0.7)
        assert not any("Refreshing" in line for line in citadel.log())
        warned = "grace period ratio 0.100000 is out of the recommended window [0.20, 0.80]"
        assert any(warned in line for line in citadel.log())

    run(tmp_path, script)


def test_a_namespace_that_becomes_managed_gets_the_secrets_of_its_accounts(tmp_path: Path) -> None:
    async def script(citadel: Citadel) -> None:
        await citadel.start(args=(SELF_SIGNED,), env={"CITADEL_ENABLE_NAMESPACES_BY_DEFAULT": "false"})
        labels = {"ca.istio.io/override": "true"}
        await citadel.client.patch("/api/v1/namespaces/cit-a", {"metadata": {"labels": labels}})
        await citadel.logged("Secret cit-a/istio.web is created successfully")
        await citadel.logged("Secret cit-a/istio.default is created successfully")
        assert not any("Secret cit-system/" in line for line in citadel.log())

    run(tmp_path, script)


def test_in_a_namespace_no_longer_managed_a_wrong_name_is_deleted_and_nothing_renewed(tmp_path: Path) -> None:
    async def script(citadel: Citadel) -> None:
        await citadel.start(args=(SELF_SIGNED,))
        await citadel.logged("Secret cit-a/istio.web is created successfully")
        before = await citadel.secret("istio.web")
        labels = {"ca.istio.io/override": "false"}
        await citadel.client.patch("/api/v1/namespaces/cit-a", {"metadata": {"labels": labels}})
        await citadel.patch("istio.web", "cit-a", cert_chain="garbage")
        await citadel.logged("Secret cit-a/istio.istio.web deleted successfully")
        assert await citadel.secret("istio.web") == before | {"cert-chain.pem": "garbage"}

    run(tmp_path, script)


def test_without_istio_ca_secret_a_foreign_root_in_a_secret_is_left_alone(tmp_path: Path) -> None:
    async def script(citadel: Citadel) -> None:
        await citadel.start(3.0, args=(SELF_SIGNED,))  # five seconds of tries are a quarter of one
        await citadel.logged("Secret cit-a/istio.web is created successfully")
        await citadel.client.delete("/api/v1/namespaces/cit-system/secrets/istio-ca-secret")
        await citadel.patch("istio.web", "cit-a", root_cert="foreign")
        missing = 'fail to load CA secret cit-system:istio-ca-secret (error: secrets "istio-ca-secret" not found)'
        await citadel.logged(
            f"failed on syncing root cert in KeyCertBundle ({missing}), skip updating secret cit-a:istio.web"
        )
        assert any("Timeout on loading CA secret cit-system:istio-ca-secret." in line for line in citadel.log())
        assert (await citadel.secret("istio.web"))["root-cert.pem"] == "foreign"

    run(tmp_path, script)


def test_the_rotator_tells_istio_security_and_alone_hears_of_sigterm(tmp_path: Path) -> None:
    env = {
        "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "0.3s",
        "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR": "false",
    }

    async def script(citadel: Citadel) -> None:
        await citadel.start(args=(SELF_SIGNED,), env=env)
        new = lab.root("New")
        values = {"ca_cert": new.pem, "ca_key": new.key_pem}
        await citadel.patch("istio-ca-secret", "cit-system", **values)
        await citadel.logged("Root certificate is updated into configmap.")
        assert await citadel.published() == new.pem
        assert citadel.container is not None
        assert citadel.running is not None
        citadel.container.stopping.set()
        await citadel.logged("Received stop signal, so stop the root cert rotator.")
        assert not citadel.running.done()

    run(tmp_path, script)


@pytest.mark.parametrize(
    ("ca", "problem"),
    [(True, ""), (False, "certificate is not authorized to sign other certificates")],
)
def test_a_plugged_in_citadel_publishes_its_chain_and_has_to_be_a_ca(tmp_path: Path, ca: bool, problem: str) -> None:
    root = lab.root("A")
    signer = lab.intermediate(root, ca=ca)
    names = ("signing-cert", "signing-key", "cert-chain", "root-cert")
    texts = (signer.pem, signer.key_pem, signer.pem + root.pem, root.pem)

    async def script(citadel: Citadel) -> None:
        layer = tmp_path / "layer-0" / "ca"
        layer.mkdir(parents=True)
        for name, text in zip(names, texts, strict=True):
            (layer / name).write_text(text)
        await citadel.start(args=tuple(f"--{name}=/ca/{name}" for name in names))
        if problem:
            assert citadel.running is not None
            assert await citadel.running == 255
            assert any(f"Failed to create an Citadel (error: {problem})" in line for line in citadel.log())
            return
        assert await citadel.published() == signer.pem + root.pem
        await citadel.logged("Secret cit-a/istio.web is created successfully")
        chain = (await citadel.secret("istio.web"))["cert-chain.pem"]
        assert [c.subject for c in x509.load_pem_x509_certificates(chain.encode())][1:] == [
            signer.certificate.subject,
            root.certificate.subject,
        ]

    run(tmp_path, script)
