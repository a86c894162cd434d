"""Giving an AKS cluster its Istio add-on with a plug-in CA: what there is before a mesh, and so before any rotation.

There is no mesh to observe yet, and so no record: what has been done is read from the vault (by tag), from the four
secrets, and from the cluster's profile, which change in this order. Every step may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.audit import audited_step
from capstan.errors import GateRefused, GateTimedOut, InvalidInput, InvalidPem, NotFound
from capstan.pki.bundle import Bundle
from capstan.pki.csr import make_request, parse_request
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import RootPolicy, mint_root
from capstan.progress import watcher
from capstan.rotation import material, offline
from capstan.systems.aks import enable
from capstan.systems.aks.arm import open_arm
from capstan.systems.aks.profile import Plugin, read_profile, vault_url
from capstan.systems.istio.key_vault import KeyVaultSource, ObjectNames
from capstan.systems.istio.preflight import verify_files
from capstan.systems.istio.source import CaFiles
from capstan.systems.opening import open_systems
from capstan.vaults.material import Material
from capstan.vaults.secret_texts import SecretTexts

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.config import ClusterRef, PluginCa, TrustDomain
    from capstan.pki.csr import Request
    from capstan.pki.inspect import Certificate
    from capstan.systems.aks.arm import Arm
    from capstan.systems.base import IssuerMaterial
    from capstan.trust.observation import ClusterObservation
    from capstan.vaults.base import Vault

ID: Final = "enable-plugin-ca"
"""Tag of what is minted for it: once per trust domain and vault."""
_SIGNED_ROOT: Final = "signed-root"
_POLL: Final = 2.0


@dataclass(frozen=True, slots=True)
class Enabled:
    """What enabling came to.

    Attributes:
        root: Fingerprint of the mesh's root.
        issuers: Cluster -> fingerprint of its intermediate, by which every live istiod was seen to sign.
        revisions: Cluster -> revisions of the add-on.
        access: Cluster -> how its secrets provider may read the vault.
    """

    root: str
    issuers: dict[str, str]
    revisions: dict[str, tuple[str, ...]]
    access: dict[str, str]


def guard(domain: TrustDomain, key_vault_id: str) -> dict[str, str]:
    """Refuse what cannot be enabled, before anything is minted; cluster -> how its provider may read the vault.

    Args:
        key_vault_id: ARM id of the Key Vault with the four secrets; empty where every cluster's profile names it.

    Raises:
        GateRefused: An add-on runs with another CA: Azure changes that only by disabling it first.
        Denied: A secrets provider may not read the vault; says what to grant.
        InvalidInput: A cluster has no ARM id, or nothing names the vault.
    """
    with audited_step("enable/guard"):
        access = {}
        for reference in domain.clusters:
            arm, plugin = plugin_of(reference, key_vault_id)
            watcher().step("is the add-on to be enabled?", str(arm.cluster))
            profile = read_profile(arm)
            enable.require_enable_possible(profile, plugin)
            access[reference.name] = enable.require_access(arm, profile, plugin)
        return access


def mint(domain: TrustDomain, vault: Vault, now: datetime) -> material.Target:
    """A root and each cluster's intermediate, into Capstan's own vault, once.

    Raises:
        VerificationFailed: A verifier refuses what was minted.
        Permanent, Retryable: As the vault.
    """
    with audited_step("enable/mint"):
        policy = domain.policy
        shape = RootPolicy(f"{domain.name} root", policy.root_validity, policy.root_algorithm)
        reference = vault.ensure(
            material.secret_name(domain.name, "root"),
            lambda: Material.of(mint_root(shape, 1, now)),
            material.tags_of(domain.name, ID),
        )
        root = vault.get(reference).minted(str(reference))
        names = {cluster.name: _issuer_name(cluster.name) for cluster in domain.clusters}
        return material.mint_issuers(vault, root, domain=domain.name, rotation=ID, names=names, policy=policy, now=now)


def recall_signed(domain: TrustDomain, vault: Vault) -> material.Target | None:
    """What the offline root signed, if all of it is in the vault already."""
    root = material.entry(vault, ID, material.secret_name(domain.name, _SIGNED_ROOT))
    names = [cluster.name for cluster in domain.clusters]
    entries = [material.entry(vault, ID, material.secret_name(domain.name, f"issuer-{name}")) for name in names]
    if root is None or None in entries:
        return None
    kept = Bundle.parse(vault.get(root).certificate_pem, str(root)).certificates[0]
    return material.minted_before(vault, domain=domain.name, rotation=ID, clusters=names, root=kept)


def request_signing(domain: TrustDomain, vault: Vault) -> tuple[offline.Asked, ...]:
    """Each cluster's intermediate key, in the vault, and a signing request for it, in a file.

    Raises:
        Permanent, Retryable: As the vault.
    """
    with audited_step("enable/request-signing"):
        directory = offline.directory_of(domain, ID)
        directory.mkdir(parents=True, exist_ok=True)
        asked = []
        for cluster in domain.clusters:
            reference = vault.ensure(
                material.secret_name(domain.name, f"request-{cluster.name}"),
                lambda: Material(private_key_pem=PrivateKey.generate().pem().decode("ascii"), where="intermediate"),
                material.tags_of(domain.name, ID),
            )
            path = directory / f"{cluster.name}.csr.pem"
            request = _kept(path.read_text(encoding="ascii") if path.exists() else "", str(path))
            if request is None or request.spki_sha256 != reference.fingerprint:
                key = PrivateKey.parse(vault.get(reference).unsafe_private_key_pem(), str(reference))
                request = make_request(key, _issuer_name(cluster.name))
                path.write_text(request.pem(), encoding="ascii")
            asked.append(offline.Asked(cluster.name, request, path))
        return tuple(asked)


def accept_signed(
    domain: TrustDomain, vault: Vault, asked: tuple[offline.Asked, ...], text: str, where: str, now: datetime
) -> None:
    """Take back what the offline root signed, after verifying it, and put it with its keys into the vault.

    Raises:
        As `capstan.rotation.offline.accept_signed`.
    """
    with audited_step("enable/accept-signed"):
        found = offline.parsed(text, where)
        chains = {
            each.cluster: offline.verified(each, found, where, trusted=Bundle(), new=True, now=now) for each in asked
        }
        root = offline.one_root(chains.values(), where)
        tags = material.tags_of(domain.name, ID)
        for each in asked:
            request = material.entry(vault, ID, material.secret_name(domain.name, f"request-{each.cluster}"))
            if request is None:
                raise NotFound(
                    "the key that this signature is for is not in the vault", where=vault.url,
                    observed=f"no usable entry for the request of cluster {each.cluster}",
                    expected="the key made when the signature was asked for",
                    next_command="use the vault that this was begun with (--vault)",
                )  # fmt: skip
            key = vault.get(request).unsafe_private_key_pem()
            pem = "\n".join(certificate.pem() for certificate in chains[each.cluster][:-1])
            name = material.secret_name(domain.name, f"issuer-{each.cluster}")
            vault.ensure(name, partial(Material, pem, key, where=each.cluster), tags)
        vault.ensure(material.secret_name(domain.name, _SIGNED_ROOT), lambda: Material(root.pem()), tags)


def upload(domain: TrustDomain, reference: ClusterRef, key_vault_id: str, vault: Vault, target: material.Target,
           now: Callable[[], datetime]) -> None:  # fmt: skip
    """Make a cluster's four secrets, by the rules that istiod reads them with; what is there already is left alone.

    Raises:
        GateRefused: The add-on is enabled, and signs with another CA: it was rotated since. Or the vault holds another
            CA under these names, which somebody may have made for this very purpose. Nothing was written.
        InvalidPem, InvalidCertificate, VerificationFailed: An istiod would not start with them. Nothing was written.
        Denied, Throttled, Unreachable, ServerFault: As the Key Vault; the same call goes on from there.
    """
    with audited_step(f"enable/upload/{reference.name}"):
        arm, plugin = plugin_of(reference, key_vault_id)
        source = _source(domain, reference, plugin, now)
        watcher().step("upload the plug-in CA", source.where)
        issuer = material.issuer_material(vault, target.references[f"issuer/{reference.name}"])
        files = _files(issuer, target.root)
        if read_profile(arm).mesh:
            _require_ours(source, issuer)
        elif others := source.others(files, issuer.key):
            raise GateRefused(
                "the Key Vault holds another CA under these names", where=source.where, observed="; ".join(others),
                expected="no such secrets, or those of this CA",
                next_command="capstan istio enable --adopt, to enable the add-on with the CA that is there; or name "
                "other secrets (--root-cert-object-name and its like)",
            )  # fmt: skip
        source.create(files, issuer.key)


def adopt(domain: TrustDomain, key_vault_id: str, now: Callable[[], datetime]) -> material.Target:
    """The CA that is in the vault already, made by whoever keeps the root: verified, and left as it is.

    Raises:
        NotFound: One of the four secrets is not there.
        InvalidPem, InvalidCertificate, VerificationFailed: An istiod would not start with them.
        GateRefused: There is more than one root, or the clusters have different ones.
    """
    with audited_step("enable/adopt"):
        roots: dict[str, Certificate] = {}
        issuers = {}
        for reference in domain.clusters:
            _, plugin = plugin_of(reference, key_vault_id)
            source = _source(domain, reference, plugin, now)
            watcher().step("adopt the plug-in CA", source.where)
            kept = source.kept()
            verify_files(kept.files, kept.key, source.where, now=now())
            issuers[reference.name] = source.read_issuer().certificate
            held = Bundle.parse_lenient(kept.files.root_cert, source.where).certificates
            roots |= {root.fingerprint: root for root in held}
        if len(roots) != 1:
            raise GateRefused(
                "an add-on is enabled with one root", where=f"trust domain {domain.name}",
                observed=", ".join(sorted(root[:16] for root in roots)), expected="the same one root in every cluster",
                next_command="leave the one root that is to be trusted in each cluster's secret of root certificates",
            )  # fmt: skip
        return material.Target(next(iter(roots.values())), issuers, {})


def _source(domain: TrustDomain, reference: ClusterRef, plugin: Plugin, now: Callable[[], datetime]) -> KeyVaultSource:
    names = ObjectNames(plugin.root_cert, plugin.ca_cert, plugin.ca_key, plugin.cert_chain)
    return KeyVaultSource(
        SecretTexts(plugin.vault_url), names, cluster_name=reference.name, now=now,
        tags=material.tags_of(domain.name, ID),
    )  # fmt: skip


def enable_add_on(domain: TrustDomain, reference: ClusterRef, key_vault_id: str, revision: str) -> tuple[str, ...]:
    """Ask Azure for the add-on with this CA, and wait until it is done; the revisions it runs.

    Raises:
        GateRefused, Conflict, GateTimedOut: As `capstan.systems.aks.enable.enable_plugin_ca`.
    """
    with audited_step(f"enable/add-on/{reference.name}"):
        arm, plugin = plugin_of(reference, key_vault_id)
        watcher().step("enable the add-on", str(arm.cluster))
        profile = enable.enable_plugin_ca(
            arm, plugin, revision=revision, seconds=domain.policy.restart_deadline.total_seconds(),
            on_progress=watcher().note,
        )  # fmt: skip
        return profile.revisions


def await_signing(
    domain: TrustDomain, target: material.Target, now: Callable[[], datetime], sleep: Callable[[float], None]
) -> None:
    """Wait until every live istiod of every cluster signs by its intermediate and hands out the root.

    Raises:
        GateTimedOut: They do not in the time of a restart; names them.
    """
    with audited_step("enable/await-signing"):
        clusters, systems = open_systems(domain)
        until = now() + domain.policy.restart_deadline
        try:
            while True:
                waiting: list[str] = []
                for name, system in systems.items():
                    try:
                        seen = system.observe([target.root, *target.issuers.values()])
                        waiting += _not_signing(seen, target.issuers[name], target.root)
                    except (NotFound, InvalidInput) as error:  # the add-on's objects come one after the other
                        waiting.append(f"{name}: {error.what}")
                watcher().count(len(systems) - len({w.partition(":")[0] for w in waiting}), len(systems), waiting)
                if not waiting:
                    return
                if now() > until:
                    raise GateTimedOut(
                        "the add-on does not sign with its plug-in CA", stragglers=waiting,
                        where=f"trust domain {domain.name}", observed="; ".join(waiting[:10]),
                        expected=f"every istiod signs by its intermediate by {until:%F %T}Z",
                        next_command="capstan check --system aks-istio",
                    )  # fmt: skip
                sleep(_POLL)
        finally:
            for cluster in clusters.values():
                cluster.close()


def require_cluster_id(reference: ClusterRef) -> PluginCa:
    """What is declared of a cluster's plug-in CA, which has to name the managed cluster.

    Raises:
        InvalidInput: It does not: nothing could be enabled.
    """
    given = reference.plugin_ca
    if given is None or not given.cluster_id:
        raise InvalidInput(
            "the add-on can be enabled only in a cluster whose ARM id is known", where=f"cluster {reference.name}",
            observed="no plugin_ca.cluster_id (--cluster-id)", expected="the managed cluster's ARM id",
            next_command="az aks show --resource-group GROUP --name NAME --query id",
        )  # fmt: skip
    return given


def plugin_of(reference: ClusterRef, key_vault_id: str) -> tuple[Arm, Plugin]:
    """A cluster's Resource Manager, and where its CA is to come from.

    Raises:
        InvalidInput: The cluster has no ARM id, or nothing names the Key Vault.
    """
    given = require_cluster_id(reference)
    arm = open_arm(given.cluster_id)
    if not key_vault_id:
        plugin = read_profile(arm).plugin
        if plugin is None:
            raise InvalidInput(
                "nothing says which Key Vault the CA is to come from", where=str(arm.cluster),
                observed="no key_vault_id, and no plug-in CA in the cluster's profile",
                expected="the ARM id of the Key Vault", next_command="az keyvault show --name NAME --query id",
            )  # fmt: skip
        return arm, plugin
    url = given.key_vault or vault_url(arm, key_vault_id)
    return arm, Plugin(key_vault_id, given.root_cert, given.ca_cert, given.ca_key, given.cert_chain, url)


def _require_ours(source: KeyVaultSource, issuer: IssuerMaterial) -> None:
    """An add-on that runs is never given the CA again that it was enabled with."""
    held = source.read_issuer().certificate
    if held != issuer.certificate:
        raise GateRefused(
            "the add-on is enabled already, and signs with another CA", where=source.where,
            observed=f"{held.subject} {held.fingerprint[:16]}", expected=f"{issuer.certificate.fingerprint[:16]}",
            next_command="nothing is left to be enabled; for another CA: capstan rotate --system aks-istio",
        )  # fmt: skip


def _files(issuer: IssuerMaterial, root: Certificate) -> CaFiles:
    """As Microsoft's page has them: the chain is the intermediate and the root."""
    chain = "\n".join([issuer.chain_pem(), root.pem()]) + "\n"
    return CaFiles(f"{root.pem()}\n", f"{issuer.certificate.pem()}\n", chain, "")


def _not_signing(seen: ClusterObservation, issuer: Certificate, root: Certificate) -> list[str]:
    if not seen.signers:
        return [f"{seen.name}: no live istiod was found"]
    only = frozenset({root.fingerprint})
    return [
        f"{seen.name}: {signer.name} " + (signer.unreadable or "signs with another CA, or hands out other roots")
        for signer in seen.signers
        if signer.issuer != issuer.fingerprint or signer.roots != only
    ]


def _issuer_name(cluster: str) -> str:
    return f"Istio CA {cluster}"


def _kept(text: str, where: str) -> Request | None:
    """A request that was written before; None if it is none any more."""
    if not text:
        return None
    try:
        return parse_request(text, where)
    except (InvalidPem, InvalidInput):
        return None
