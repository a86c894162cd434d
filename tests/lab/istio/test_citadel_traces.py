"""Citadel 1.3 against every trace recorded from the real one; its 60 s resync is scaled by the lab's variable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.lab.client import ApiError
from tests.lab.istio import istiod_replay as lab
from tests.lab.istio.citadel_replay import RESYNC, Citadel, load, recorded, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_01_a_first_start_gives_every_service_account_its_secret_and_repairs_it(tmp_path: Path) -> None:
    trace = load("01-self-signed-first-start")
    second = next(e["t_ms"] for e in trace["events"] if e.get("what", "").startswith("second start"))

    async def script(citadel: Citadel) -> None:
        await citadel.start()
        await citadel.logged("is created successfully", 3)
        ca = await citadel.secret("istio-ca-secret", "cit-system")
        assert [key for key, value in sorted(ca.items()) if value] == ["ca-cert.pem", "ca-key.pem"]
        root = ca["ca-cert.pem"]
        assert lab.shape(x509.load_pem_x509_certificate(root.encode())) == lab.recorded_shape(trace["certs"]["cert-2"])
        assert await citadel.published() == root
        item = await citadel.client.get("/api/v1/namespaces/cit-a/secrets/istio.web")
        assert item["type"] == "istio.io/key-and-cert"
        assert item["metadata"]["annotations"] == {"istio.io/service-account.name": "web"}
        first = await citadel.secret("istio.web")
        assert set(first) == {"cert-chain.pem", "key.pem", "root-cert.pem"}
        assert first["root-cert.pem"] == root
        assert first["key.pem"].startswith("-----BEGIN RSA PRIVATE KEY-----")
        leaf = x509.load_pem_x509_certificate(first["cert-chain.pem"].encode())
        assert lab.shape(leaf) == lab.recorded_shape(trace["certs"]["cert-5"])
        await citadel.account("late")
        await citadel.logged("Secret cit-a/istio.late is created successfully")
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.logged("Secret cit-new/istio.default is created successfully")
        await citadel.client.delete("/api/v1/namespaces/cit-a/secrets/istio.web")
        await citadel.logged("Secret cit-a/istio.web is created successfully", 2)
        again = await citadel.secret("istio.web")
        assert again["key.pem"] != first["key.pem"]
        await citadel.client.delete("/api/v1/namespaces/cit-a/serviceaccounts/late")
        await citadel.logged("Secret cit-a/istio.late deleted successfully")
        with pytest.raises(ApiError, match="404"):
            await citadel.secret("istio.late")
        await citadel.patch("istio.web", "cit-a", root_cert="garbage")
        await citadel.logged("Secret cit-a/istio.istio.web refreshed successfully.")
        repaired = await citadel.secret("istio.web")
        assert repaired["root-cert.pem"] == root
        assert repaired["key.pem"] != again["key.pem"]
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://{citadel.ip}:15014/metrics")).text
        end = x509.load_pem_x509_certificate(root.encode()).not_valid_after_utc
        assert f"citadel_server_citadel_root_cert_expiry_timestamp {end.timestamp():.0f}\n" in text
        await citadel.kill()
        assert citadel.log() == recorded(trace, end=second)
        await citadel.start()
        await citadel.logged("adding registry entry", 5)
        await citadel.kill()
        assert citadel.log() == recorded(trace, begin=second)

    run(tmp_path, script)


@pytest.mark.slow
@pytest.mark.parametrize("trace_name", ["02-root-replaced-same-key", "03-root-replaced-new-key"])
def test_02_03_after_a_restart_every_secret_follows_a_replaced_root_at_the_first_resync(
    tmp_path: Path, trace_name: str
) -> None:
    trace = load(trace_name)
    same_key = trace_name.startswith("02")

    async def script(citadel: Citadel) -> None:
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.start()
        await citadel.logged("is created successfully", 4)
        ca = await citadel.secret("istio-ca-secret", "cit-system")
        key = None
        if same_key:
            key = rsa_key(ca["ca-key.pem"])
        renewed = lab.root("cluster.local", "", key=key)
        before = citadel.log()
        await citadel.patch("istio-ca-secret", "cit-system", ca_cert=renewed.pem, ca_key=renewed.key_pem)
        await asyncio.sleep(0.3)
        assert citadel.log() == before  # a running Citadel does not look
        await citadel.kill()
        await citadel.start(RESYNC)
        assert await citadel.published() == renewed.pem
        assert await citadel.roots() == {ca["ca-cert.pem"]}
        await citadel.logged("refreshed successfully.", 4)
        assert await citadel.roots() == {renewed.pem}
        await citadel.kill()
        starts = [e["t_ms"] for e in trace["events"] if e.get("what") == "start citadel"]
        begin, end = (starts[1], 10**9) if same_key else (starts[0], starts[1])
        assert citadel.log() == recorded(trace, begin, end)
        if not same_key:
            await citadel.patch("istio-ca-secret", "cit-system", ca_key=ca["ca-key.pem"])
            await citadel.start()
            assert citadel.running is not None
            assert await citadel.running == 255
            assert citadel.log() == recorded(trace, starts[1])

    run(tmp_path, script)


def rsa_key(pem: str) -> rsa.RSAPrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


@pytest.mark.slow
def test_06_a_running_citadel_adopts_a_new_root_only_when_it_meets_a_secret_with_another(tmp_path: Path) -> None:
    trace = load("06-root-replaced-while-running")
    new = lab.root("cluster.local", "")

    async def script(citadel: Citadel) -> None:
        await citadel.client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cit-new"}}
        )
        await citadel.account("default", "cit-new")
        await citadel.start(1.2)
        await citadel.logged("is created successfully", 4)
        old = (await citadel.secret("istio-ca-secret", "cit-system"))["ca-cert.pem"]
        await citadel.patch("istio-ca-secret", "cit-system", ca_cert=new.pem, ca_key=new.key_pem)
        await asyncio.sleep(1.4)  # the resync finds nothing: the Secrets hold what the memory holds
        assert await citadel.roots() == {old}
        await citadel.client.delete("/api/v1/namespaces/cit-a/secrets/istio.web")
        await citadel.logged("Secret cit-a/istio.web is created successfully", 2)
        await citadel.account("fresh")
        await citadel.logged("Secret cit-a/istio.fresh is created successfully")
        assert await citadel.roots() == {old}
        await citadel.patch("istio.web", "cit-a", root_cert="garbage")
        await citadel.logged("Secret cit-a/istio.istio.web refreshed successfully.")
        await citadel.logged("refreshed successfully.", 5)
        assert citadel.container is not None
        refreshed = [line.text for line in citadel.container.logs.lines() if "refreshed successfully." in line.text]
        assert "cit-a/istio.istio.web" in refreshed[0]  # until the next resync the fleet is mixed
        assert await citadel.roots() == {new.pem}
        await citadel.kill()
        assert citadel.log() == recorded(trace)

    run(tmp_path, script)
