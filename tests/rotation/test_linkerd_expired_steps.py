"""The steps that replace what has expired, one by one, on a real API: what is made, what is written, and only once."""

from __future__ import annotations

import itertools
from base64 import b64decode, b64encode
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, SECRETS
from capstan.cluster.restart import STAMP, restart_workloads
from capstan.config import ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import GateRefused, GateTimedOut, OwnedElsewhere
from capstan.pki.bundle import Bundle
from capstan.pki.csr import sign_request
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from capstan.pki.verify import verify_issuer
from capstan.rotation import Rotation, material, offline, open_rotation, outages, proving, replacing, turning
from capstan.rotation.proposing_expired import propose_replacement
from capstan.systems.linkerd.values import get_value
from capstan.trust.expired import Scope
from capstan.trust.observation import Owner
from capstan.trust.phase import Phase
from capstan.vaults.material import Material
from capstan.vaults.opening import open_vault
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from capstan.pki.inspect import Certificate

DAY = timedelta(days=1)
NAME = "identity.linkerd.cluster.local"
_numbers = itertools.count(1)


def root(life: timedelta, ago: timedelta = DAY) -> Minted:
    return mint_root(RootPolicy("root.linkerd.cluster.local", validity=life), 1, datetime.now(UTC) - ago)


def issuer(above: Minted, life: timedelta, ago: timedelta = DAY) -> Minted:
    return mint_issuer(IssuerPolicy(NAME, validity=life), above, datetime.now(UTC) - ago)


@dataclass
class Mesh:
    """A Linkerd without a pod: what is declared, in a namespace of its own."""

    cluster: Cluster
    domain: TrustDomain

    @property
    def namespace(self) -> str:
        return self.domain.control_plane_namespace

    def roots(self) -> Bundle:
        item = self.cluster.get(CONFIG_MAPS, "linkerd-identity-trust-roots", self.namespace)
        return Bundle.parse(item["data"]["ca-bundle.crt"], "roots")

    def repeated(self) -> Bundle:
        item = self.cluster.get(CONFIG_MAPS, "linkerd-config", self.namespace)
        text = get_value(item["data"]["values"], ("identityTrustAnchorsPEM",), "linkerd-config")
        return Bundle.parse(text or "", "linkerd-config")

    def issuer(self) -> Certificate:
        secret = self.cluster.get(SECRETS, "linkerd-identity-issuer", self.namespace)
        return Bundle.parse_lenient(b64decode(secret["data"]["crt.pem"]), "issuer").certificates[0]

    def versions(self) -> list[str]:
        places = ((CONFIG_MAPS, "linkerd-identity-trust-roots"), (CONFIG_MAPS, "linkerd-config"),
                  (SECRETS, "linkerd-identity-issuer"))  # fmt: skip
        return [self.cluster.get(r, name, self.namespace)["metadata"]["resourceVersion"] for r, name in places]

    @contextmanager
    def opened(self) -> Iterator[Rotation]:
        with open_rotation(self.domain, kind="expired") as rotation:
            yield rotation


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def cluster(api: Running) -> Iterator[Cluster]:
    with closing(api.connect()) as connected:
        yield connected


@pytest.fixture
def installed(api: Running, cluster: Cluster, tmp_path: Path) -> Any:
    """Installs a Linkerd with these certificates; `keep` puts the anchor's key into the domain's vault."""

    def install(
        anchor: Minted, signing: Minted, *, keep: bool = False, marks: dict[str, Any] | None = None, **policy: Any
    ) -> Mesh:
        namespace = f"linkerd-{next(_numbers)}"
        pem = anchor.certificate.pem()
        values = "clusterDomain: cluster.local\nidentityTrustAnchorsPEM: |\n" + "".join(
            f"  {line}\n" for line in pem.splitlines()
        )
        cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for name, data in (
            ("linkerd-identity-trust-roots", {"ca-bundle.crt": pem}),
            ("linkerd-config", {"values": values}),
        ):
            metadata = {"name": name, "namespace": namespace, **(marks or {})}
            cluster.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        data = {"crt.pem": signing.certificate.pem() + "\n", "key.pem": signing.key.pem().decode("ascii")}
        cluster.create(SECRETS, {
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "linkerd-identity-issuer", "namespace": namespace},
            "data": {name: b64encode(text.encode()).decode() for name, text in data.items()},
        })  # fmt: skip
        labels = {"linkerd.io/control-plane-component": "identity"}
        container = {"name": "identity", "image": "cr.l5d.io/linkerd/controller:edge-26.8.3", "args": ["identity"]}
        cluster.create(DEPLOYMENTS, {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "linkerd-identity", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        })  # fmt: skip
        reference = ClusterRef(kubeconfig=str(api.server.kubeconfig))
        domain = TrustDomain(
            name=namespace, clusters=(reference,), control_plane_namespace=namespace,
            home=str(tmp_path / "home"), policy=RotationPolicy(**policy),
        )  # fmt: skip
        if keep:
            vault = open_vault(domain.vault_url())
            tags = material.tags_of(domain.name, "an earlier rotation")
            vault.ensure(material.secret_name(domain.name, "root"), lambda: Material.of(anchor), tags)
        return Mesh(cluster, domain)

    return install


def made(rotation: Rotation) -> Scope:
    scope = replacing.diagnose(rotation)
    replacing.mint(rotation)
    replacing.settle(rotation)
    return scope


def written(rotation: Rotation) -> None:
    replacing.replace_roots(rotation, "cluster")
    replacing.replace_issuer(rotation, "cluster")


def require_signing(mesh: Mesh) -> None:
    """What is declared is what identity would start with now."""
    verify_issuer(mesh.issuer(), mesh.roots(), datetime.now(UTC))
    assert mesh.repeated().fingerprints == mesh.roots().fingerprints


def test_under_an_anchor_that_lives_and_whose_key_is_in_the_vault_only_the_issuer_is_made_and_written(
    installed: Any,
) -> None:
    anchor = root(3650 * DAY)
    mesh = installed(anchor, issuer(anchor, DAY / 2), keep=True)
    before = mesh.versions()
    with mesh.opened() as rotation:
        assert made(rotation) is Scope.ISSUER
        assert rotation.locate() is Phase.ISSUE
        written(rotation)
        first = mesh.issuer()
        after = mesh.versions()
        assert after[:2] == before[:2]
        assert after[2] != before[2]
        # Repeated, it writes nothing.
        written(rotation)
        assert mesh.versions() == after
    require_signing(mesh)
    # Another process makes the same, and finds it done.
    with mesh.opened() as again:
        assert again.resumed
        assert made(again) is Scope.ISSUER
        written(again)
        assert mesh.issuer() == first
        assert mesh.versions() == after
        assert again.locate() is Phase.DONE
        outages.account_for_outage(again)
        proving.finish(again)
        assert again.outcome().completed
        assert again.record().outcome == "completed"


# Of these, one has passed: what is left has to do for two lives of a leaf, and the restarts.
@pytest.mark.parametrize(("days", "scope"), [(4, Scope.ISSUER), (3, Scope.ANCHOR)])
def test_an_issuer_never_outlives_its_anchor_and_one_that_soon_ends_signs_none(
    installed: Any, days: int, scope: Scope
) -> None:
    anchor = root(DAY * days)
    mesh = installed(anchor, issuer(anchor, DAY / 2), keep=True)
    with mesh.opened() as rotation:
        assert made(rotation) is scope
        written(rotation)
        assert mesh.issuer().not_after <= min(r.not_after for r in mesh.roots())
    require_signing(mesh)


@pytest.mark.parametrize("case", ["the anchor's key is lost", "the anchor has ended", "the anchor is its own issuer"])
def test_where_the_anchor_cannot_sign_any_more_one_new_anchor_is_made_however_often_it_is_begun(
    installed: Any, case: str
) -> None:
    match case:
        case "the anchor's key is lost":
            anchor = root(3650 * DAY)
            signing = issuer(anchor, DAY / 2)
        case "the anchor has ended":
            anchor = root(DAY / 2)
            signing = issuer(anchor, DAY / 4)
        case _:
            anchor = signing = mint_root(RootPolicy(NAME, validity=DAY / 2), 1, datetime.now(UTC) - DAY)
    mesh = installed(anchor, signing)
    with mesh.opened() as rotation:
        assert made(rotation) is Scope.ANCHOR
        replacing.replace_roots(rotation, "cluster")
    with mesh.opened() as rotation:
        made(rotation)
        written(rotation)
        (new,) = mesh.roots()
        assert new.fingerprint != anchor.certificate.fingerprint
        assert mesh.issuer().fingerprint != new.fingerprint
        assert mesh.issuer().common_name.startswith(NAME)
        assert new.common_name.startswith("root.linkerd.cluster.local")
        minted = rotation.vault.find({}, material.secret_name(mesh.domain.name, "root"))
        assert [reference.fingerprint for reference in minted] == [new.fingerprint]
    require_signing(mesh)


def test_an_anchor_that_has_ended_beside_a_good_one_is_taken_away_and_nothing_is_made(installed: Any) -> None:
    ended, good = root(DAY / 2), root(3650 * DAY)
    mesh = installed(good, issuer(good, 365 * DAY))
    item = mesh.cluster.get(CONFIG_MAPS, "linkerd-identity-trust-roots", mesh.namespace)
    item["data"]["ca-bundle.crt"] = Bundle.of(ended.certificate, good.certificate).pem()
    mesh.cluster.replace(CONFIG_MAPS, item)
    signing = mesh.issuer()
    with mesh.opened() as rotation:
        assert made(rotation) is Scope.REMNANT
        written(rotation)
        assert rotation.locate() is Phase.DONE
    assert [r.fingerprint for r in mesh.roots()] == [good.certificate.fingerprint]
    assert mesh.issuer() == signing


def test_a_root_that_is_kept_offline_signs_the_issuers_request(installed: Any) -> None:
    anchor = root(3650 * DAY)
    mesh = installed(anchor, issuer(anchor, DAY / 2), offline_root=True)
    with mesh.opened() as rotation:
        assert replacing.diagnose(rotation) is Scope.ISSUER
        assert not offline.recall_signed(rotation)
        (asked,) = offline.request_signing(rotation)
        signed = sign_request(anchor, asked.request, IssuerPolicy(NAME, validity=365 * DAY), datetime.now(UTC))
        offline.accept_signed(rotation, [asked], f"{signed.pem()}\n{anchor.certificate.pem()}\n", "test")
        replacing.settle(rotation)
        written(rotation)
        assert mesh.issuer() == signed
    require_signing(mesh)


def test_what_is_asked_names_the_downtime_its_cause_and_that_nothing_is_taken_back(installed: Any) -> None:
    anchor = root(3650 * DAY)
    mesh = installed(anchor, issuer(anchor, DAY / 2))
    with mesh.opened() as rotation:
        made(rotation)
        proposal = propose_replacement(rotation, rotation.plan(rotation.recent()))
        text = " ".join(proposal.text().split())
        assert proposal.gate == "replace-expired"
        assert "The issuer of cluster cluster signs nothing that is accepted since" in text
        assert "A new anchor and new issuers take the place of what there is" in text
        assert "there is nothing worth going back to" in text
        assert max(len(line) for line in proposal.text().splitlines()) <= 100
        again = propose_replacement(rotation, rotation.plan(rotation.observe()))
        assert again.digest == proposal.digest


def test_it_is_ended_without_a_trace_until_something_is_written_and_never_after(installed: Any) -> None:
    anchor = root(3650 * DAY)
    mesh = installed(anchor, issuer(anchor, DAY / 2))
    before = mesh.versions()
    with mesh.opened() as rotation:
        made(rotation)
        turning.recall(rotation)
        turning.turn_back(rotation)
        proving.finish(rotation)
        assert rotation.outcome().completed
        assert (rotation.record().outcome, mesh.versions()) == ("rolled back", before)
    with open_rotation(mesh.domain, "again", kind="expired") as rotation:
        made(rotation)
        replacing.replace_roots(rotation, "cluster")
        with pytest.raises(GateRefused, match="what there was before has expired"):
            turning.recall(rotation)


def test_what_a_tool_owns_is_refused_with_the_change_to_commit_there_and_nothing_is_written(installed: Any) -> None:
    anchor = root(DAY / 2)
    argo = {"annotations": {"argocd.argoproj.io/tracking-id": "mesh:/ConfigMap:linkerd/linkerd-identity-trust-roots"}}
    mesh = installed(anchor, issuer(anchor, DAY / 4), marks=argo)
    before = mesh.versions()
    with mesh.opened() as rotation:
        made(rotation)
        with pytest.raises(OwnedElsewhere):
            replacing.replace_roots(rotation, "cluster")
    assert mesh.versions() == before


def test_a_workload_that_does_not_come_up_holds_up_no_other(cluster: Cluster) -> None:
    namespace = f"down-{next(_numbers)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    owners = [Owner("Deployment", namespace, name) for name in ("cart", "web")]
    for owner in owners:
        template = {
            "metadata": {"labels": {"app": owner.name}},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        }
        spec = {"selector": {"matchLabels": {"app": owner.name}}, "template": template}
        metadata = {"name": owner.name, "namespace": namespace}
        cluster.create(DEPLOYMENTS, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    # There is no controller here: none of them ever comes up, and both are begun all the same.
    with pytest.raises(GateTimedOut) as ended:
        restart_workloads(cluster, owners, "turn-1", seconds=0.5, parallel=1, go_on=True)
    assert len(ended.value.stragglers) == 2
    assert not any("not begun" in straggler for straggler in ended.value.stragglers)
    for owner in owners:
        found = cluster.get(DEPLOYMENTS, owner.name, namespace)["spec"]["template"]["metadata"]["annotations"]
        assert found[STAMP] == "turn-1"
