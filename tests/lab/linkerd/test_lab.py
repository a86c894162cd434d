"""The whole lab: it comes up, its judge never cries wolf, and it bites when a rotation is done wrong."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from infra.lab import pki
from infra.lab.apiserver import ApiServer
from infra.lab.client import ApiError, Informer
from infra.lab.linkerd import manifests
from infra.lab.linkerd.sidecar import ROOTS_CONFIG_MAP, ROOTS_KEY
from infra.lab.linkerd.workload import encode
from infra.lab.objects import is_available
from infra.lab.procedures import documented_blog
from infra.lab.up import Lab, Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JSON = dict[str, Any]
CONTAINER = {"name": "app", "image": "registry.example/app:1"}
KINDS = ("deployments", "statefulsets", "daemonsets")


def run(
    directory: Path,
    script: Callable[[Lab], Awaitable[None]],
    *,
    leaf_seconds: int = 24,
    linkerd: manifests.Options | None = None,
) -> None:
    """Run a script against a lab of its own in this process."""

    async def whole() -> None:
        chosen = linkerd or manifests.Options(leaf_seconds=leaf_seconds)
        options = Options(directory, size="small", probes_per_second=100, linkerd=chosen)
        lab = await Lab(options).start()
        try:
            await script(lab)
        finally:
            await lab.stop()

    asyncio.run(whole())


async def restart(lab: Lab, *namespaces: str, kinds: tuple[str, ...] = KINDS) -> None:
    """Roll every workload of the namespaces and wait."""
    for kind in kinds:
        for namespace in namespaces:
            path = f"/apis/apps/v1/namespaces/{namespace}/{kind}"
            async with informer(lab, path) as found:
                stamp = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat()}
                patch = {"spec": {"template": {"metadata": {"annotations": stamp}}}}
                wanted = {}
                for key in list(found.objects):
                    answer = await lab.client.patch(f"{path}/{key[1]}", patch, kind="strategic")
                    wanted[key] = answer["metadata"]["generation"]
                await found.wait_for(lambda seen, wanted=wanted: _rolled(seen, wanted), 60)


def _rolled(seen: dict[Any, JSON], wanted: dict[Any, int]) -> bool:
    return all(
        key in seen and seen[key]["metadata"]["generation"] >= generation and is_available(seen[key])
        for key, generation in wanted.items()
    )


@contextlib.asynccontextmanager
async def informer(lab: Lab, path: str) -> AsyncIterator[Informer]:
    found = await Informer(lab.client, path).synced()
    try:
        yield found
    finally:
        await found.stop()


async def write_bundle(lab: Lab, *roots: str) -> None:
    """A new ca-bundle.crt, waited for until every mount must have it."""
    path = f"/api/v1/namespaces/linkerd/configmaps/{ROOTS_CONFIG_MAP}"
    await lab.client.patch(path, {"data": {ROOTS_KEY: "".join(roots).strip()}})
    await asyncio.sleep(1.6)


async def bundle(lab: Lab) -> str:
    path = f"/api/v1/namespaces/linkerd/configmaps/{ROOTS_CONFIG_MAP}"
    return str((await lab.client.get(path))["data"][ROOTS_KEY]) + "\n"


async def switch_issuer(lab: Lab, root: pki.KeyPair) -> pki.KeyPair:
    """A new issuer under `root`, waited for until the mount must have it."""
    issuer = pki.mint_issuer(root, now=datetime.now(UTC))
    data = {"crt.pem": encode(issuer.certificate_pem), "key.pem": encode(issuer.key_pem)}
    await lab.client.patch("/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer", {"data": data})
    await asyncio.sleep(1.6)
    return issuer


async def wait_for_leaves(lab: Lab, issuer: pki.KeyPair, seconds: float) -> None:
    """Until every proxy presents a leaf of `issuer`."""
    assert lab.mesh is not None
    wanted = pki.subject_key(issuer.certificate)
    async with asyncio.timeout(seconds):
        while not all(
            proxy.material is not None and pki.authority_key(proxy.material.leaf) == wanted
            for proxy in lab.mesh.proxies.values()
        ):
            await asyncio.sleep(0.1)


def new_root() -> pki.KeyPair:
    return pki.mint_root(now=datetime.now(UTC), name="root.linkerd.cluster.local 2")


@pytest.mark.long
def test_continuous_restarts_of_everything_drop_no_handshake(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        until = time.monotonic() + 20
        rounds = 0
        while time.monotonic() < until:
            await asyncio.gather(restart(lab, "linkerd"), restart(lab, "shop"), restart(lab, "edge"))
            rounds += 1
        counts = lab.prober.counts
        assert [failure.error for failure in counts.failures] == []
        assert counts.failed == 0
        assert counts.attempted > 300
        assert rounds >= 1

    run(tmp_path, script, leaf_seconds=120)


@pytest.mark.long
def test_pods_deleted_at_random_drop_no_handshake(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        assert lab.mesh is not None
        for _ in range(30):
            victim = next(iter(lab.mesh.proxies.values()))
            path = f"/api/v1/namespaces/{victim.container.namespace}/pods/{victim.container.pod_name}"
            with contextlib.suppress(Exception):
                await lab.client.delete(path)
            await asyncio.sleep(0.3)
        assert [failure.error for failure in lab.prober.counts.failures] == []
        assert lab.prober.counts.attempted > 100

    run(tmp_path, script, leaf_seconds=120)


@pytest.mark.long
def test_the_safe_order_turns_the_root_without_a_failed_handshake(tmp_path: Path) -> None:
    """Trust both, restart; sign with the new, let every leaf renew; trust only the new, restart."""

    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        assert lab.mesh is not None
        old, root = await bundle(lab), new_root()
        await write_bundle(lab, old, root.certificate_pem)
        await restart(lab, "linkerd")
        await restart(lab, "shop", "edge")
        issuer = await switch_issuer(lab, root)
        await wait_for_leaves(lab, issuer, 60)
        await write_bundle(lab, root.certificate_pem)
        await restart(lab, "linkerd")
        await restart(lab, "shop", "edge")
        await asyncio.sleep(2)
        held = {tuple(map(pki.fingerprint, proxy.roots)) for proxy in lab.mesh.proxies.values()}
        assert held == {(root.fingerprint,)}
        assert [failure.error for failure in lab.prober.counts.failures] == []
        assert lab.prober.counts.attempted > 300

    run(tmp_path, script, leaf_seconds=24)


def test_switching_the_issuer_before_the_proxies_trust_it_drops_handshakes(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        root = new_root()
        await write_bundle(lab, await bundle(lab), root.certificate_pem)
        await restart(lab, "linkerd")
        await switch_issuer(lab, root)
        await restart(lab, "edge")
        await asyncio.sleep(3)
        assert lab.prober.counts.failed > 0
        failure = lab.prober.counts.failures[0]
        assert failure.client.pod
        assert failure.server.roots
        assert "SSL" in failure.error

    run(tmp_path, script)


def test_dropping_the_old_root_before_its_leaves_are_gone_drops_handshakes(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        root = new_root()
        await write_bundle(lab, await bundle(lab), root.certificate_pem)
        await restart(lab, "linkerd", "shop", "edge")
        await switch_issuer(lab, root)
        # No wait for leaves: those of before the switch are still presented.
        await write_bundle(lab, root.certificate_pem)
        await restart(lab, "edge")
        await asyncio.sleep(3)
        assert lab.prober.counts.failed > 0

    run(tmp_path, script, leaf_seconds=60)


def test_a_dry_run_shows_what_the_injector_would_do_now(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        pem = (await bundle(lab)).rstrip("\n")
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dry"}, "spec": {"containers": [CONTAINER]}}
        answer = await lab.client.create("/api/v1/namespaces/shop/pods", pod, dryRun="All")
        proxy = next(c for c in answer["spec"]["initContainers"] if c["name"] == "linkerd-proxy")
        anchors = next(e for e in proxy["env"] if e["name"] == "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS")
        assert anchors == {"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": pem}
        annotations = answer["metadata"]["annotations"]
        assert annotations["linkerd.io/trust-root-sha256"] == hashlib.sha256(pem.encode()).hexdigest()
        untouched = await lab.client.create("/api/v1/namespaces/edge/pods", pod, dryRun="All")
        assert "initContainers" not in untouched["spec"]
        with pytest.raises(ApiError, match="404"):
            await lab.client.get("/api/v1/namespaces/shop/pods/dry")

    run(tmp_path, script)


def test_an_older_linkerd_with_the_other_secret_scheme_and_sidecars_among_the_containers(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        assert lab.prober is not None
        pods = (await lab.client.list("/api/v1/pods", labelSelector="linkerd.io/control-plane-ns"))["items"]
        assert len(pods) == 9 + 3
        for pod in pods:
            assert "linkerd-proxy" in [c["name"] for c in pod["spec"]["containers"]]
            assert "linkerd-proxy" not in [c["name"] for c in pod["spec"]["initContainers"]]
        secret = await lab.client.get("/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer")
        assert sorted(secret["data"]) == ["ca.crt", "tls.crt", "tls.key"]
        assert lab.prober.counts.failed == 0

    older = manifests.Options(version="stable-2.14.10", scheme="kubernetes.io/tls", native_sidecar=False)
    run(tmp_path, script, linkerd=older)


def test_the_lab_runs_on_an_api_server_that_is_not_its_own(tmp_path: Path) -> None:
    async def whole() -> None:
        api = ApiServer(tmp_path / "foreign")
        await api.start()
        try:
            lab = await Lab(Options(tmp_path / "lab", size="small", kubeconfig=api.kubeconfig)).start()
            try:
                assert lab.api is None
                assert lab.describe()["server"] == api.url
                assert lab.kubeconfig.read_bytes() == api.kubeconfig.read_bytes()
            finally:
                await lab.stop()
        finally:
            await api.stop()

    asyncio.run(whole())


def test_the_published_cron_job_drops_handshakes(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        result = await documented_blog.run(lab.kubeconfig, lab.control_url, scale=1 / 60, watch_seconds=10)
        assert result["handshakes"]["failed"] > 0
        assert any("namespace shop" in step["step"] for step in result["steps"])
        assert not any("namespace edge" in step["step"] for step in result["steps"])

    run(tmp_path, script)


def test_the_command_comes_up_says_where_it_is_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    command = [sys.executable, "-m", "infra.lab", "up", "--size", "small", "--dir", str(directory)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_file(directory / "lab.json", process)
            described = json.loads((directory / "lab.json").read_text())
            assert described["pid"] == process.pid
            assert (directory / "kubeconfig").stat().st_mode & 0o077 == 0
            with httpx.Client(base_url=described["control"], trust_env=False) as client:
                assert client.get("/healthz").text == "ok\n"
                assert client.get("/prober").json()["failed"] == 0
                pods = client.get("/pods").json()
                assert len(pods) == 9 + 3
                assert len({tuple(pod["roots"]) for pod in pods}) == 1
                assert all(pod["leaf"]["issuer"] for pod in pods)
                assert client.post("/prober/reset").json()["attempted"] >= 0
                assert client.get("/nothing").status_code == 404
            second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert second.returncode == 1
            assert "another lab runs in" in second.stderr
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert not (directory / "lab.json").exists()
    assert "ready" in errors


def wait_for_file(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
