"""Every check of an Istio: green on a mesh in order, red on the one thing it is about."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.cluster.resources import EVENTS, PODS, SECRETS
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.systems.base import CheckResult, Severity, Status
from capstan.systems.istio.checks import checks
from capstan.systems.istio.layout import Revision
from capstan.systems.istio.observe import View, observe
from capstan.systems.istio.proxies import Proxy
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.versions import Version
from tests.support.apiserver import Running
from tests.support.istio_mesh import SYSTEM, IstioMesh
from tests.support.mesh import intermediate, leaf, pem, root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.systems.istio.places import Place

NOW = datetime.now(UTC)  # when the suite began; what a mesh was made at is `Green.now`


class Green:
    """A mesh in order, read once.

    Attributes:
        view: What was read.
        cluster: Where it was read from.
        mesh: What stands there.
    """

    def __init__(self, mesh: IstioMesh, cluster: Cluster) -> None:
        self.mesh = mesh
        self.cluster = cluster
        self.view = observe(cluster, SYSTEM, mesh.source)
        self.now = datetime.now(UTC)

    def run(self, view: View | None = None, *, now: datetime | None = None) -> dict[str, CheckResult]:
        return {item.description: item for item in checks(self.cluster, view or self.view, now=now or self.now)}

    def red(self, description: str, view: View | None = None, *, now: datetime | None = None) -> str:
        """The check's message; it must fail, and be green on the mesh in order."""
        if view is not None or now is not None:
            assert self.run()[description].status in (Status.OK, Status.SKIPPED), description
        found = self.run(view, now=now)[description]
        assert found.status is (Status.WARNING if found.level is Severity.WARNING else Status.ERROR), found
        assert found.hint.startswith("https://")
        assert found.message
        return found.message

    def proxy(self, **changes: Any) -> View:
        """The view with its first proxy changed; fields of the peer by their own names."""
        first, *rest = self.view.proxies
        own = {key: value for key, value in changes.items() if key in Proxy.__dataclass_fields__}
        peer = {key: value for key, value in changes.items() if key not in own}
        return replace(self.view, proxies=(replace(first, peer=replace(first.peer, **peer), **own), *rest))

    def istiod(self, **changes: Any) -> View:
        """The view with its first istiod changed; fields of the signer by their own names."""
        first, *rest = self.view.istiods
        own = {key: value for key, value in changes.items() if key in ("version", "serving")}
        signer = {key: value for key, value in changes.items() if key not in own}
        return replace(self.view, istiods=(replace(first, signer=replace(first.signer, **signer), **own), *rest))

    def revision(self, **changes: Any) -> View:
        """The view with another Deployment of istiod."""
        (old,) = self.view.layout.revisions
        template = old.deployment["spec"]["template"]
        container = dict(template["spec"]["containers"][0])
        if "version" in changes:
            container["image"] = f"docker.io/istio/pilot:{changes['version']}"
        if "env" in changes:
            container["env"] = [{"name": key, "value": value} for key, value in changes["env"].items()]
        spec = {
            **old.deployment["spec"],
            "template": {**template, "spec": {**template["spec"], "containers": [container]}},
        }
        status = changes.get("status", old.deployment["status"])
        made = Revision(old.name, {**old.deployment, "spec": spec, "status": status}, old.container, old.pods)
        return replace(self.view, layout=replace(self.view.layout, revisions=(made,)))

    def mode(self, mode: Mode, view: View | None = None) -> View:
        view = view or self.view
        return replace(view, layout=replace(view.layout, mode=mode))

    def files(self, **changes: str) -> View:
        return replace(self.view, files=replace(self.view.files, **changes))


@pytest.fixture(scope="module")
def green(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Green]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    cluster = running.connect(sleep=lambda _seconds: None)
    mesh = IstioMesh(running, cluster)
    yield Green(mesh.standard(), cluster)
    mesh.close()
    cluster.close()
    running.stop()


@pytest.fixture
def secret(green: Green) -> Iterator[Any]:
    """Puts other data into Secret cacerts for one test."""
    before = green.cluster.get(SECRETS, "cacerts", SYSTEM)["data"]

    def put(data: dict[str, str | bytes | None]) -> None:
        item = green.cluster.get(SECRETS, "cacerts", SYSTEM)
        for key, value in data.items():
            item["data"].pop(key, None)
            if value is not None:
                raw = value.encode() if isinstance(value, str) else value
                item["data"][key] = base64.b64encode(raw).decode()
        green.cluster.replace(SECRETS, item)

    yield put
    item = green.cluster.get(SECRETS, "cacerts", SYSTEM)
    green.cluster.replace(SECRETS, {**item, "data": before})


def test_a_mesh_in_order_passes_every_check(green):
    failed = [item for item in green.run().values() if item.status not in (Status.OK, Status.SKIPPED)]
    assert failed == []


def test_each_check_has_a_name_of_its_own_and_a_page_that_explains_it(green):
    results = checks(green.cluster, green.view, now=green.now)
    assert len({item.description for item in results}) == len(results) >= 35
    assert all(item.hint.startswith(("https://istio.io/", "https://github.com/istio/")) for item in results)


def test_what_is_skipped_says_why(green):
    assert all(item.message for item in green.run().values() if item.status is Status.SKIPPED)


# --- the CA --------------------------------------------------------------------------------------------------------


def test_missing_files_are_told_with_what_this_version_does_then(green, secret):
    secret({"root-cert.pem": None, "ca-key.pem": ""})
    description = "the set of plug-in CA files is complete"
    message = green.red(description)
    assert "root-cert.pem" in message
    assert "ca-key.pem" in message
    assert "1.30.1 will not start" in message
    assert "will not start" in green.run(green.revision(version="1.26.1"))[description].message
    before = green.run(green.revision(version="1.26.0"))[description].message
    assert "makes itself a self-signed CA" in before
    assert "will not start" not in before
    assert (
        "of unknown version will not start again, or makes itself"
        in green.run(green.revision(version="latest"))[description].message
    )
    secret({"root-cert.pem": None, "ca-key.pem": "not read"})
    assert "will not start" in green.run(green.revision(version="1.26.0"))[description].message


def test_an_empty_chain_is_no_missing_file(green, secret):
    secret({"cert-chain.pem": ""})
    assert green.run()["the set of plug-in CA files is complete"].status is Status.OK


def test_the_form_of_cert_manager_is_told_to_carry_one_root(green, secret):
    secret({"tls.crt": "x", "tls.key": "y", "ca.crt": "z"})
    assert "one root" in green.red("the form of the CA's Secret can carry two roots")


def test_roots_and_signing_certificate_expire_in_steps(green):
    root_days = (green.mesh.old.certificate.not_after - green.now).days
    assert green.run()["roots are valid for at least 60 days"].message.startswith(f"{root_days} days")
    soon = green.mesh.old.certificate.not_after - timedelta(days=30, hours=1)
    assert "30 days before it expires" in green.red("roots are valid for at least 60 days", now=soon)
    after = green.mesh.old.certificate.not_after + timedelta(days=1)
    assert "expired on" in green.red("roots are within their validity period", now=after)
    soon = green.mesh.issuer.certificate.not_after - timedelta(days=10, hours=1)
    assert "10 days" in green.red("the signing certificate is valid for at least 60 days", now=soon)
    after = green.mesh.issuer.certificate.not_after + timedelta(days=1)
    assert "expired on" in green.red("the signing certificate is within its validity period", now=after)
    before = NOW - timedelta(days=10)
    assert "not valid before" in green.red("the signing certificate is within its validity period", now=before)


def test_a_root_that_is_no_ca_is_told(green):
    view = replace(green.view, bundle=Bundle.of(green.mesh.old.certificate, leaf(green.mesh.issuer)))
    assert "CA:TRUE" in green.red("roots are CAs", view)


def test_a_signing_certificate_that_cannot_be_read_is_told(green):
    assert green.red("the signing certificate can be read", replace(green.view, issuer=None))
    unread = replace(green.view, issuer=None, files=None)
    assert green.run(unread)["the signing certificate can be read"].status is Status.SKIPPED


def test_a_signing_certificate_that_is_no_ca_is_told(green):
    assert "CA:TRUE" in green.red(
        "the signing certificate is a CA", replace(green.view, issuer=leaf(green.mesh.issuer))
    )


def test_a_signing_certificate_of_another_root_is_told(green):
    other = intermediate("Intermediate CA", green.mesh.new).certificate
    assert green.red(
        "the signing certificate chains to the roots through cert-chain.pem", replace(green.view, issuer=other)
    )


def test_a_signing_certificate_two_steps_below_the_root_needs_the_chain(green):
    now = datetime.now(UTC)
    upper = intermediate("upper", green.mesh.old, now, path_length=1)
    lower = intermediate("lower", upper, now)
    description = "the signing certificate chains to the roots through cert-chain.pem"
    view = replace(green.files(cert_chain=pem(lower, upper, green.mesh.old)), issuer=lower.certificate)
    assert green.run(view)[description].status is Status.OK
    assert green.red(description, replace(green.files(cert_chain=pem(lower)), issuer=lower.certificate))


def test_a_chain_without_the_signing_ca_or_with_it_in_another_place_is_told(green):
    description = "cert-chain.pem begins with the signing certificate"
    assert "does not verify" in green.red(description, green.files(cert_chain=pem(green.mesh.old)))
    other_order = green.files(cert_chain=pem(green.mesh.old, green.mesh.issuer))
    assert "stands first" in green.red(description, other_order)
    assert green.run(other_order)[description].level is Severity.WARNING
    assert green.run(green.mode(Mode.SELF_SIGNED))[description].status is Status.OK


def test_a_key_of_another_ca_or_none_at_all_is_told_before_an_istiod_starts_with_it(green, secret):
    description = "the signing key is the signing certificate's"
    assert green.run()[description].status is Status.OK
    secret({"ca-key.pem": intermediate("Intermediate CA 2", green.mesh.old).key.pem()})
    assert "no istiod starts with it" in green.red(description)
    secret({"ca-key.pem": "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n"})
    assert "hush" not in green.red(description)
    assert green.run(replace(green.view, layout=replace(green.view.layout, ca_secret="")))[description].status is (
        Status.SKIPPED
    )


def test_a_chain_for_two_signers_stops_no_rotation(green):
    # As the add-on's vault holds it while the driver is waited for, and for good where a switch was taken back.
    other = intermediate("Intermediate CA 2", green.mesh.new)
    found = green.run(green.files(cert_chain=pem(other, green.mesh.new, green.mesh.issuer)))
    of_the_chain = [item for name, item in found.items() if "cert-chain.pem" in name]
    assert len(of_the_chain) == 2
    assert not [item for item in of_the_chain if item.status is Status.ERROR]


def test_two_roots_of_one_name_without_key_identifiers_are_told(green):
    name = green.mesh.old.certificate.raw.subject

    def plain(key: PrivateKey) -> Certificate:
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key)
            .serial_number(x509.random_serial_number()).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        )  # fmt: skip
        return Certificate(key.sign(builder))

    view = replace(green.view, bundle=Bundle.of(green.mesh.old.certificate, plain(PrivateKey.generate())))
    assert "identifiers" in green.red("roots can be told apart", view)


def test_a_revocation_list_that_does_not_cover_the_chain_is_told(green, secret):
    description = "the CA's revocation lists cover its chain"

    def crl(signer) -> str:
        builder = x509.CertificateRevocationListBuilder().issuer_name(signer.certificate.raw.subject)
        builder = builder.last_update(NOW).next_update(NOW + timedelta(days=1))
        key = serialization.load_pem_private_key(signer.key.pem(), None)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    secret({"ca-crl.pem": crl(green.mesh.old) + crl(green.mesh.issuer)})
    assert green.run()[description].status is Status.OK
    secret({"ca-crl.pem": crl(green.mesh.old)})
    assert "Intermediate CA" in green.red(description)
    secret({"ca-crl.pem": "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"})
    assert "cannot be read" in green.red(description)


@pytest.mark.parametrize("interval", ["0", "0s", "-1s"])
def test_a_root_rotator_that_is_switched_off_is_told(green, interval):
    description = "istiod renews its self-signed root by itself"
    view = green.mode(Mode.SELF_SIGNED, green.revision(env={"CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": interval}))
    assert interval in green.red(description, view)
    kept = green.mode(Mode.SELF_SIGNED, green.revision(env={"CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "1h0m0s"}))
    assert green.run(kept)[description].status is Status.OK


def test_a_ca_secret_that_is_not_there_or_not_to_be_read_is_told(green):
    description = "the CA's Secret can be read"
    elsewhere = replace(green.view, layout=replace(green.view.layout, ca_secret="none"))
    assert "istio-system/none" in green.red(description, elsewhere)
    nobody = Green.__new__(Green)
    nobody.now = green.now
    nobody.view, nobody.cluster = green.view, Cluster("c", kubernetes_client.Configuration(host="http://127.0.0.1:1"))
    nobody.cluster.sleep = lambda _seconds: None
    found = nobody.run()
    assert found[description].status is Status.ERROR
    assert found["new workloads can be deployed with a sidecar"].status is Status.ERROR
    assert found["the control plane's pods can be listed"].status is Status.ERROR


# --- the control plane ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "fixed"), [("1.24.4", "1.24.5"), ("1.25.1", "1.25.2")])
def test_the_broken_versions_are_told_with_the_fixed_ones(green, tag, fixed):
    description = "no istiod has a version that breaks a bundle of roots"
    assert fixed in green.red(description, green.revision(version=tag))
    older_pod = green.istiod(version=Version(*(int(part) for part in tag.split("."))))
    assert fixed in green.red(description, older_pod)


def test_an_unknown_version_is_told(green):
    assert "istiod" in green.red("every istiod's version is known", green.revision(version="latest"))


def test_a_rollout_under_way_is_told(green):
    status = {**green.view.layout.revisions[0].deployment["status"], "updatedReplicas": 1}
    assert "1 of 2 pods" in green.red("no rollout of a control plane is under way", green.revision(status=status))


def test_a_second_revision_is_told(green):
    (only,) = green.view.layout.revisions
    second = Revision("canary", only.deployment, only.container, only.pods)
    view = replace(green.view, layout=replace(green.view.layout, revisions=(only, second)))
    assert "canary" in green.red("one revision of the control plane is installed", view)


def test_an_istiod_that_does_not_answer_is_told(green):
    description = "every istiod says what it signs with and which roots it hands out"
    assert "lost" in green.red(description, green.istiod(issuer=None, roots=None, unreadable="the answer was lost"))
    assert "no istiod runs" in green.red(description, replace(green.view, istiods=()))


def test_an_istiod_that_signs_with_another_ca_is_told(green):
    assert "ffff" in green.red("every istiod signs with the configured CA", green.istiod(issuer="f" * 64))


def test_an_istiod_that_hands_out_other_roots_is_told(green):
    assert "ffff" in green.red("every istiod hands out the CA's roots", green.istiod(roots=frozenset({"f" * 64})))


def test_readers_that_lag_are_told_with_what_they_hold_and_an_unreadable_one_is_no_such_reader(green: Green) -> None:
    old, other = "f" * 64, "e" * 64
    behind = green.run(green.istiod(roots=frozenset({old}), issuer=other))
    assert behind["every istiod hands out the CA's roots"].lagging == {old}
    assert behind["every istiod signs with the configured CA"].lagging == {other}
    hook = other_place(green, config_map=False)
    place = next(each for each in hook.places.others if each.fingerprints != hook.bundle.fingerprints)
    assert green.run(hook)["every webhook configuration trusts the CA's roots"].lagging == place.fingerprints
    broken = replace(hook.places, others=(replace(place, roots=None, problem="no PEM"),))
    assert green.run(replace(hook, places=broken))["every webhook configuration trusts the CA's roots"].lagging is None


@pytest.mark.parametrize(("version", "env"), [("1.30.1", {}), ("1.19.0", {"ISTIO_MULTIROOT_MESH": "true"})])
def test_an_istiod_that_needs_a_restart_for_a_changed_root_is_told(green, version, env):
    message = green.red("a changed root is taken without a restart of istiod", green.revision(version=version, env=env))
    assert "istiod" in message


# --- the places ----------------------------------------------------------------------------------------------------


def other_place(green: Green, *, config_map: bool, place: Place | None = None) -> View:
    stale = Bundle.of(green.mesh.new.certificate)
    places = green.view.places
    if config_map:
        first, *rest = places.config_maps
        return replace(green.view, places=replace(places, config_maps=(replace(first, roots=stale), *rest)))
    first, *rest = places.others
    return replace(green.view, places=replace(places, others=(place or replace(first, roots=stale), *rest)))


def test_a_configmap_that_lags_is_told(green):
    assert "configmap" in green.red(
        "every ConfigMap istio-ca-root-cert holds the CA's roots", other_place(green, config_map=True)
    )


def test_a_namespace_with_proxies_and_without_the_configmap_is_told(green):
    places = replace(green.view.places, config_maps=green.view.places.config_maps[:1])
    message = green.red(
        "every namespace with proxies has the ConfigMap istio-ca-root-cert", replace(green.view, places=places)
    )
    assert "shop" in message
    instead = replace(green.revision(env={"ENABLE_CLUSTER_TRUST_BUNDLE_API": "true"}), places=places)
    found = green.run(instead)["every namespace with proxies has the ConfigMap istio-ca-root-cert"]
    assert found.status is Status.SKIPPED


def test_a_webhook_that_lags_is_told_and_so_is_the_istiod_that_it_does_not_trust(green):
    view = other_place(green, config_map=False)
    assert "istio-sidecar-injector" in green.red("every webhook configuration trusts the CA's roots", view)
    assert "does not trust" in green.red("the API server can verify every istiod that it calls", view)


def test_a_serving_certificate_that_was_not_renewed_is_told(green):
    other = intermediate("Intermediate 2", green.mesh.new)
    view = green.istiod(serving=(leaf(other), other.certificate, green.mesh.new.certificate))
    assert "istiod-abc-0" in green.red("the API server can verify every istiod that it calls", view)


def test_what_declares_the_roots_and_could_not_be_read_is_told(green):
    view = replace(green.view, troubles=("secret cacerts cannot be read",))
    assert "cacerts" in green.red("all that declares the roots could be read", view)
    places = replace(green.view.places, abandoned=("istiod-default-validator belongs to revision default",))
    view = replace(green.view, places=places)
    assert "default-validator" in green.red("all that declares the roots could be read", view)


# --- the proxies ---------------------------------------------------------------------------------------------------


def test_an_unreadable_proxy_is_told(green):
    view = green.proxy(trusts=None, leaf=None, unreadable="no answer from port 15000")
    assert "15000" in green.red("every proxy says its roots and its leaf", view)


def test_a_proxy_with_other_roots_is_told(green):
    view = green.proxy(trusts=frozenset({"f" * 64}))
    assert "ffff" in green.red("every proxy holds the CA's roots", view)
    assert "is not trusted by" in green.red("every proxy trusts every other proxy's leaf", view)


def test_a_leaf_that_others_do_not_trust_is_told(green):
    shown = replace(green.view.proxies[0].peer.leaf, anchors=frozenset({"f" * 64}))
    assert "is not trusted by" in green.red("every proxy trusts every other proxy's leaf", green.proxy(leaf=shown))


def test_an_expired_leaf_is_told(green):
    assert "expired" in green.red("no proxy presents an expired leaf", now=NOW + timedelta(days=2))


def test_a_leaf_of_another_ca_is_told(green):
    shown = replace(green.view.proxies[0].peer.leaf, issuer=None)
    assert "unknown" in green.red("every leaf was signed by the configured CA", green.proxy(leaf=shown))


def test_a_leaf_that_lives_long_is_told(green):
    shown = green.view.proxies[0].peer.leaf
    view = green.proxy(leaf=replace(shown, not_after=shown.not_before + timedelta(days=90)))
    assert "2160 hours" in green.red("no leaf lives longer than a day", view)


def test_proxies_that_do_not_get_changed_roots_at_once_are_told_where_others_do(green):
    description = "changed roots reach every proxy at once"
    assert green.run()[description].status is Status.SKIPPED
    agent = {"PROXY_CONFIG_XDS_AGENT": "true"}
    mixed = green.proxy(env=agent)
    assert "next leaf" in green.red(description, mixed)
    every = replace(green.view, proxies=tuple(replace(item, env=agent) for item in green.view.proxies))
    assert green.run(every)[description].status is Status.OK
    without = replace(every, layout=green.revision(env={}).layout)
    assert green.red(description, without)


@pytest.mark.parametrize("tag", [(1, 31, 0), (1, 28, 9)])
def test_a_proxy_ahead_of_its_control_plane_or_two_behind_is_told(green, tag):
    assert "1 " in green.red("proxies' versions fit their control plane's", green.proxy(version=Version(*tag)))


def test_a_proxy_one_minor_version_behind_is_in_order(green):
    view = green.proxy(version=Version(1, 29, 4))
    assert green.run(view)["proxies' versions fit their control plane's"].status is Status.OK


def test_a_ztunnel_that_keeps_the_roots_of_its_start_is_told(green):
    description = "every ztunnel takes a changed root without a restart"
    assert "1.28.5" in green.red(description, green.proxy(kind="ztunnel", version=Version(1, 28, 5)))
    assert green.run(green.proxy(kind="ztunnel", version=Version(1, 30, 0)))[description].status is Status.OK


# --- the root transition page --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [(1, 0, 7), (1, 1, 2), (1, 1, 5)])
def test_sidecars_too_old_to_load_a_changed_root_are_told(green, tag):
    assert "Upgrade" in green.red("sidecars load a changed root by themselves", green.proxy(version=Version(*tag)))


def test_workload_secrets_of_another_root_are_told_and_none_at_all_is_no_pass(green):
    description = "every workload Secret holds the CA's root"
    citadel = green.mode(Mode.CITADEL, replace(green.view, issuer=green.mesh.old.certificate))
    assert "nothing was checked" in green.red(description, citadel)

    def put(name: str, anchor) -> None:
        data = {"root-cert.pem": pem(anchor), "cert-chain.pem": pem(leaf(anchor)), "key.pem": "not read"}
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
        metadata = {"name": f"istio.{name}", "namespace": "shop"}
        body = {"apiVersion": "v1", "kind": "Secret", "type": "istio.io/key-and-cert", "metadata": metadata}
        green.cluster.create(SECRETS, {**body, "data": encoded})

    put("web", green.mesh.old)
    assert green.run(citadel)[description].status is Status.OK
    put("cart", green.mesh.new)
    assert "istio.cart" in green.red(description, citadel)
    for name in ("web", "cart"):
        green.cluster.delete(SECRETS, f"istio.{name}", "shop")


def component(green: Green, name: str, label: str, *, image: str, started: datetime, sidecar: bool = False):
    containers = [{"name": label, "image": image}]
    if sidecar:
        containers.append({"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.3.5"})
    spec = {"containers": containers}
    green.mesh.mesh.pod(SYSTEM, name, spec, labels={"istio": label})
    green.mesh.mesh.set_status(SYSTEM, name, spec, started=f"{started:%FT%TZ}")


def gone(green: Green, name: str) -> None:
    green.cluster.patch(PODS, name, {"status": {"phase": "Succeeded"}}, SYSTEM, subresource="status")


def test_a_pilot_without_a_sidecar_is_told_and_so_is_one_that_is_older_than_the_root(green):
    made = green.view.issuer.not_before
    has, since = "Pilot has a sidecar", "Pilot and Galley have started since the root was made"
    assert green.run()[has].status is green.run()[since].status is Status.SKIPPED
    image = "docker.io/istio/pilot:1.3.5"
    component(green, "pilot-good", "pilot", image=image, started=made - timedelta(hours=1), sidecar=True)
    assert green.run()[has].status is green.run()[since].status is Status.OK
    component(green, "pilot-new", "pilot", image=image, started=made + timedelta(hours=1))
    assert "pilot-new" in green.red(has)
    assert green.run()[since].status is Status.OK
    component(green, "galley-old", "galley", image="docker.io/istio/galley:1.3.5", started=made - timedelta(hours=1))
    message = green.red(since)
    assert "galley-old" in message
    assert "handshake error" in message
    assert "pilot-new" not in message
    for name in ("pilot-good", "pilot-new", "galley-old"):
        gone(green, name)


def test_an_injector_that_read_its_certificate_before_the_root_was_made_is_told(green):
    made = green.view.issuer.not_before
    description = "the sidecar injector has the CA's certificate"
    assert green.run()[description].status is Status.SKIPPED
    image = "docker.io/istio/sidecar_injector:{}"
    early, late = made - timedelta(hours=1), made + timedelta(hours=1)
    component(green, "injector-1", "sidecar-injector", image=image.format("1.1.7"), started=late)
    component(green, "injector-2", "sidecar-injector", image=image.format("1.3.5"), started=early)
    assert green.run()[description].status is Status.OK
    component(green, "injector-3", "sidecar-injector", image=image.format("1.1.7"), started=early)
    message = green.red(description)
    assert "injector-3" in message
    assert "injector-1" not in message
    for name in ("injector-1", "injector-2", "injector-3"):
        gone(green, name)


def test_workloads_that_could_not_be_created_for_want_of_trust_are_told(green):
    description = "new workloads can be deployed with a sidecar"

    def event(name: str, message: str, at: datetime) -> None:
        thing = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "namespace": "shop", "name": name}
        body = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{name}.1", "namespace": "shop"},
            "involvedObject": thing, "reason": "FailedCreate", "type": "Warning", "message": message,
            "firstTimestamp": f"{at:%FT%TZ}", "lastTimestamp": f"{at:%FT%TZ}",
        }  # fmt: skip
        green.cluster.create(EVENTS, body)

    call = 'Internal error occurred: failed calling webhook "{}": failed to call webhook: Post "https://istiod": {}'
    x509_error = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    event("quota", "exceeded quota", NOW)
    event("other", call.format("policy.example.com", x509_error), NOW)
    event("timeout", call.format("namespace.sidecar-injector.istio.io", "context deadline exceeded"), NOW)
    event("healed", call.format("namespace.sidecar-injector.istio.io", x509_error), NOW - timedelta(minutes=50))
    assert green.run()[description].status is Status.OK
    event("web-5d4", call.format("rev.namespace.sidecar-injector.istio.io", x509_error), NOW)
    message = green.red(description)
    assert "replicaset shop/web-5d4" in message
    assert not any(name in message for name in ("quota", "other", "timeout", "healed"))
    green.cluster.delete(EVENTS, "web-5d4.1", "shop")


def test_a_self_signed_root_is_checked_as_check_root_does(green):
    own = root("cluster.local", NOW - timedelta(days=3620))
    files = CaFiles(pem(own), pem(own), "", "1")
    view = replace(
        green.mode(Mode.SELF_SIGNED), files=files, bundle=Bundle.of(own.certificate), issuer=own.certificate
    )  # fmt: skip
    assert "29 days before it expires" in green.red("roots are valid for at least 60 days", view)
    results = green.run(view)
    assert results["the signing certificate chains to the roots through cert-chain.pem"].status is Status.OK
    assert results["cert-chain.pem begins with the signing certificate"].status is Status.OK
    assert results["a changed root is taken without a restart of istiod"].status is Status.SKIPPED
