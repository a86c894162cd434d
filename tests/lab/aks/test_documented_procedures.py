"""Each documented procedure drops what it is said to drop, on the lab that it is meant for, and its command says so."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.istio import manifests
from infra.lab.procedures import aks_two_step, delete_create, in_place_new_key, judged, same_dn_roots
from infra.lab.up import Lab, Options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from infra.lab.procedures.judged import Script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JSON = dict[str, Any]
LEAF_SECONDS = 12


def judged_on(
    directory: Path, procedure: Callable[[Script], Awaitable[None]], istio: dict[str, Any], **arguments: Any
) -> JSON:
    """What a procedure's command prints, run against an Istio of its own in this process."""

    async def whole() -> JSON:
        installation = manifests.Options(leaf_seconds=LEAF_SECONDS, **istio)
        lab = await Lab(Options(directory, system="istio", size="small", istio=installation)).start()
        given = {"vault": None, "watch_seconds": LEAF_SECONDS, **arguments}
        try:
            return await judged.judge(
                "procedure",
                procedure,
                argparse.Namespace(kubeconfig=lab.kubeconfig, control=lab.control_url, **given),
            )
        finally:
            await lab.stop()

    return asyncio.run(whole())


def test_a_new_key_in_place_drops_handshakes(tmp_path: Path) -> None:
    result = judged_on(tmp_path, in_place_new_key.run, {"ca": manifests.SELF_SIGNED})
    assert result["handshakes"]["failed"] > 0
    assert result["handshakes"]["attempted"] > 200
    assert [step["step"] for step in result["steps"]] == [
        "kubectl patch secret istio-ca-secret: a new certificate and a new key",
        "wait until istiod publishes the new root",
    ]
    assert len(result["first_failures"]) == min(3, result["handshakes"]["failed"])


@pytest.mark.long
def test_deleting_and_creating_cacerts_with_a_new_root_drops_handshakes(tmp_path: Path) -> None:
    result = judged_on(tmp_path, delete_create.run, {}, same_root=False)
    assert result["handshakes"]["failed"] > 0


@pytest.mark.long
def test_even_under_the_same_root_the_gap_between_delete_and_create_drops_handshakes(tmp_path: Path) -> None:
    result = judged_on(tmp_path, delete_create.run, {}, same_root=True)
    assert result["handshakes"]["failed"] > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "identifiers", [pytest.param(False, id="without-SKI-and-AKI"), pytest.param(True, id="with-SKI-and-AKI")]
)
def test_roots_of_one_name_drop_handshakes_in_the_right_order_too_unless_keys_are_identified(
    tmp_path: Path, identifiers: bool
) -> None:
    result = judged_on(
        tmp_path,
        same_dn_roots.run,
        {"multiroot": True, "identifiers": identifiers},
        key_identifiers=identifiers,
    )
    assert (result["handshakes"]["failed"] == 0) is identifiers


def test_every_procedure_has_the_same_command_line() -> None:
    given = ["--kubeconfig", "k", "--control", "http://127.0.0.1:1", "--vault", "v", "--watch-seconds", "3"]
    found = judged.parser(aks_two_step.__doc__ or "").parse_args(given)
    assert (str(found.kubeconfig), found.control, str(found.vault), found.watch_seconds) == (
        "k",
        "http://127.0.0.1:1",
        "v",
        3.0,
    )
