"""The pages of a light proxy, in Envoy's and the agent's own forms."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509

from infra.lab.istio import admin
from infra.lab.istio.envoy import ANNOTATION
from infra.lab.istio.proxy import ADMIN_SILENT, Proxy
from infra.lab.istio.sidecar import ROOTS_KEY, ROOTS_MOUNT, TOKEN_FILE
from tests.lab.istio.data_plane import WEB, Ca, SigningServer, container, log_of, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from infra.lab.istio.material import Material
    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def dump(material: Material | None, query: str = "", **more: Any) -> JSON:
    response = admin.config_dump(material, query, version="1.30.1", **more)
    assert (response.status, response.content_type) == (200, "application/json")
    found: JSON = json.loads(response.body)
    return found


def test_a_dump_of_the_active_secrets_is_envoys(tmp_path: Path) -> None:
    ca = Ca.mint()
    material = ca.material(WEB, tmp_path)
    default, roots = dump(material, "resource=dynamic_active_secrets")["configs"]
    assert default["@type"] == roots["@type"] == "type.googleapis.com/envoy.admin.v3.SecretsConfigDump.DynamicSecret"
    assert (default["name"], roots["name"]) == ("default", "ROOTCA")
    assert default["secret"]["@type"] == SECRET
    certificate = default["secret"]["tls_certificate"]
    assert base64.b64decode(certificate["certificate_chain"]["inline_bytes"]).decode() == material.chain_pem
    assert base64.b64decode(certificate["private_key"]["inline_bytes"]) == b"[redacted]"
    trusted = roots["secret"]["validation_context"]["trusted_ca"]["inline_bytes"]
    assert base64.b64decode(trusted).decode() == ca.roots_pem
    assert default["last_updated"] == admin.timestamp(material.leaf_updated)


def test_the_whole_dump_holds_the_same_secrets_among_the_other_sections(tmp_path: Path) -> None:
    material = Ca.mint().material(WEB, tmp_path)
    sections = {entry["@type"].rpartition(".")[2]: entry for entry in dump(material)["configs"]}
    assert {"BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump", "SecretsConfigDump"} <= sections.keys()
    secrets = sections["SecretsConfigDump"]["dynamic_active_secrets"]
    asked = dump(material, "resource=dynamic_active_secrets")["configs"]
    assert [{key: value for key, value in entry.items() if key != "@type"} for entry in asked] == secrets


def test_secrets_are_warming_before_the_first_leaf_and_active_after_it(tmp_path: Path) -> None:
    assert dump(None, "resource=dynamic_active_secrets") == {}
    warming = dump(None, "resource=dynamic_warming_secrets")["configs"]
    assert [(entry["name"], entry["version_info"]) for entry in warming] == [
        ("default", "uninitialized"),
        ("ROOTCA", "uninitialized"),
    ]
    material = Ca.mint().material(WEB, tmp_path)
    assert dump(material, "resource=dynamic_warming_secrets") == {}


def test_one_secret_can_be_asked_for_by_name_and_an_unknown_resource_is_told_as_such(tmp_path: Path) -> None:
    material = Ca.mint().material(WEB, tmp_path)
    (entry,) = dump(material, "resource=dynamic_active_secrets&name_regex=ROOTCA")["configs"]
    assert entry["name"] == "ROOTCA"
    response = admin.config_dump(material, "resource=nonsense", version="1.30.1")
    assert (response.status, response.body) == (404, b"nonsense not found in config dump")


def test_proxies_of_citadels_days_have_no_dynamic_secrets_but_paths_in_certs(tmp_path: Path) -> None:
    material = Ca.mint().material(WEB, tmp_path)
    assert dump(material, "resource=dynamic_active_secrets", files=True) == {}
    entry = admin.certs(material, ca_path="/etc/certs/root-cert.pem", chain_path="/etc/certs/cert-chain.pem")
    (ca,) = entry["certificates"][0]["ca_cert"]
    assert ca["path"] == "/etc/certs/root-cert.pem"


def test_certs_tell_the_first_root_and_the_leaf_by_serial_and_dates(tmp_path: Path) -> None:
    ca, other = Ca.mint(), Ca.mint("Root CA 2")
    material = ca.material(WEB, tmp_path, roots_pem=other.roots_pem + ca.roots_pem)
    for entry in admin.certs(material)["certificates"]:
        (root,), (leaf,) = entry["ca_cert"], entry["cert_chain"]
        assert int(root["serial_number"], 16) == other.root.certificate.serial_number
        assert int(leaf["serial_number"], 16) == material.leaf.serial_number
        assert leaf["subject_alt_names"] == [{"uri": WEB}]
        assert leaf["days_until_expiration"] == "0"
    assert admin.certs(None) == {}


def serve(
    target: Container, script: Callable[[Proxy, httpx.AsyncClient], Awaitable[None]], server: SigningServer
) -> None:
    """A whole light proxy with its CA."""
    for name, text in ((f"{ROOTS_MOUNT}/{ROOTS_KEY}", server.ca.roots_pem), (TOKEN_FILE, "token")):
        target.path(name).parent.mkdir(parents=True, exist_ok=True)
        target.path(name).write_text(text)

    async def whole() -> None:
        async with server.running(), httpx.AsyncClient(trust_env=False) as client:
            proxy = Proxy(target, server.resolve)
            running = asyncio.create_task(proxy.run())
            try:
                await script(proxy, client)
            finally:
                target.stopping.set()
                assert await running == 0

    asyncio.run(whole())


def test_a_proxy_is_ready_with_its_first_leaf_and_its_ports_agree(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    target = container(tmp_path)

    async def script(proxy: Proxy, client: httpx.AsyncClient) -> None:
        url = f"http://{target.ip}"
        await until(lambda: target.ready)
        assert (await client.get(f"{url}:15000/ready")).text == "LIVE\n"
        for port in (15020, 15021):
            assert (await client.get(f"{url}:{port}/healthz/ready")).status_code == 200
        entry = (await client.get(f"{url}:15000/config_dump?resource=dynamic_active_secrets")).json()["configs"][0]
        chain = base64.b64decode(entry["secret"]["tls_certificate"]["certificate_chain"]["inline_bytes"])
        assert proxy.material is not None
        assert x509.load_pem_x509_certificates(chain)[0] == proxy.material.leaf
        metrics = (await client.get(f"{url}:15020/stats/prometheus")).text
        (left,) = [line.split()[1] for line in metrics.splitlines() if line.startswith("istio_agent_cert_expiry")]
        assert 50 < float(left) <= 60
        assert "ssl_handshake" not in metrics
        stats = (await client.get(f"{url}:15000/stats?filter=ssl%5C.handshake")).text
        assert stats == "listener.0.0.0.0_15006.ssl.handshake: 0\n"
        for path in ("/config_dump", "/certs", "/stats", "/server_info"):
            assert "PRIVATE KEY" not in (await client.get(f"{url}:15000{path}")).text
        assert (await client.get(f"{url}:15000/nonsense")).status_code == 404

    serve(target, script, server)
    assert "PRIVATE KEY" not in log_of(target)


def test_a_proxy_without_a_leaf_is_not_ready(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    server.chain = ("",)
    target = container(tmp_path)

    async def script(proxy: Proxy, client: httpx.AsyncClient) -> None:
        await until(lambda: server.requests)
        answer = await client.get(f"http://{target.ip}:15000/ready")
        assert (answer.status_code, answer.text) == (503, "PRE_INITIALIZING\n")
        assert (await client.get(f"http://{target.ip}:15021/healthz/ready")).status_code == 503
        assert proxy.roots == []
        assert not target.ready

    serve(target, script, server)


def test_a_proxy_whose_admin_port_is_silent_serves_the_mesh_all_the_same(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    target = container(tmp_path, annotations={ADMIN_SILENT: "true"})

    async def script(proxy: Proxy, client: httpx.AsyncClient) -> None:
        await until(lambda: target.ready)
        assert proxy.material is not None
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://{target.ip}:15000/ready")
        _, writer = await asyncio.open_connection(target.ip, 15006)
        writer.close()

    serve(target, script, server)


def test_gateways_listen_to_nobody_in_the_mesh(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint())
    target = container(tmp_path)
    target.args[:] = ["proxy", "router"]

    async def script(proxy: Proxy, client: httpx.AsyncClient) -> None:
        await until(lambda: target.ready)
        assert (proxy.kind, proxy.serves) == ("gateway", False)
        assert (await client.get(f"http://{target.ip}:15000/ready")).status_code == 200
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection(target.ip, 15006)

    serve(target, script, server)


@pytest.mark.slow
def test_a_real_envoy_shows_the_same_secrets_in_the_same_form_and_takes_new_ones(tmp_path: Path) -> None:
    server = SigningServer(Ca.mint(), seconds=8)
    target = container(tmp_path, annotations={ANNOTATION: "true"})

    async def script(proxy: Proxy, client: httpx.AsyncClient) -> None:
        url = f"http://{target.ip}:15000/config_dump?resource=dynamic_active_secrets"
        await until(lambda: target.ready, 20)
        assert proxy.kind == "envoy"
        before = proxy.material
        assert before is not None
        real, light = (await client.get(url)).json(), dump(before, "resource=dynamic_active_secrets")
        for entry in (*real["configs"], *light["configs"]):
            entry.pop("last_updated")
            entry.pop("version_info", None)
        assert sorted(real["configs"], key=lambda entry: entry["name"]) == sorted(
            light["configs"], key=lambda entry: entry["name"]
        )
        await until(lambda: proxy.material is not before, 8)
        assert proxy.material is not None
        fresh = base64.b64encode(proxy.material.chain_pem.encode()).decode()
        async with asyncio.timeout(5):
            while fresh not in (await client.get(url)).text:
                await asyncio.sleep(0.05)

    serve(target, script, server)
