"""The plug-in CA of the AKS Istio add-on: four Key Vault secrets, brought to istiod by the secrets-store CSI driver.

The driver fetches each object by itself, so istiod can see any mixture of old and new (a torn read). Most mixtures it
drops, keeping its old state: a certificate and a key that do not belong together. Two it takes, and breaks every
workload that renews then: a chain that does not hold what it signs with, so that nobody can verify its leaves. Hence
the order:

- roots that are added go first, roots that are removed go last: every signer has its root at every moment;
- then a chain that serves the old signer and the new one; it is waited for where a driver can be seen to bring it;
- then certificate and key, between which there is nothing but a mismatch.

Everything is checked for all four before the first is written, and a run that dies in between is continued by the next:
each secret is written only where its latest version differs.
Source: AKS documentation, "Plug in CA certificates for the Istio-based service mesh add-on"; secrets-store-csi-driver.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from capstan.errors import CapstanError, InvalidInput, InvalidPem, NotFound
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.systems.base import Change
from capstan.systems.istio import forms
from capstan.systems.istio.planning import planned
from capstan.systems.istio.preflight import verify_files
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.texts import certificates_of, grown
from capstan.vaults.secret_texts import SecretText, SecretTexts, require_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from azure.core.credentials import TokenCredential

    from capstan.cluster.client import Cluster
    from capstan.config import PluginCa
    from capstan.systems.base import IssuerMaterial
    from capstan.systems.istio.planning import Planned
    from capstan.trust.observation import Fingerprint


@dataclass(frozen=True, slots=True)
class ObjectNames:
    """Names of the four secrets in the vault."""

    root_cert: str = "root-cert"
    ca_cert: str = "ca-cert"
    ca_key: str = "ca-key"
    cert_chain: str = "cert-chain"

    @property
    def all(self) -> tuple[str, str, str, str]:
        """In the order root, certificate, key, chain."""
        return self.root_cert, self.ca_cert, self.ca_key, self.cert_chain


@dataclass(frozen=True, slots=True)
class Kept:
    """What the vault keeps for an add-on.

    Attributes:
        versions: Latest version of each of the four secrets, by name.
    """

    files: CaFiles
    versions: Mapping[str, str]
    key: PrivateKey = field(repr=False)


class KeyVaultSource:
    """See `CaSource`.

    Args:
        cluster_name: For messages.
        now: The wall clock, aware UTC.

    Attributes:
        tags: Kept with every version that is written, such as the rotation's id.
        before_switch: Called before another certificate is written, when the chain for it is in the vault: to wait
            until that has come to istiod.
    """

    mode = Mode.KEY_VAULT

    def __init__(
        self,
        vault: SecretTexts,
        names: ObjectNames,
        *,
        cluster_name: str,
        now: Callable[[], datetime],
        tags: Mapping[str, str] | None = None,
        before_switch: Callable[[], None] | None = None,
    ) -> None:
        self.vault = vault
        self.before_switch = before_switch
        self.names = names
        self.tags = dict(tags or {})
        self._cluster_name = cluster_name
        self._now = now

    @property
    def where(self) -> str:
        """`secrets root-cert, ca-cert, ca-key, cert-chain in https://NAME.vault.azure.net (cluster east)`."""
        return f"secrets {', '.join(self.names.all)} in {self.vault.url} (cluster {self._cluster_name})"

    def read(self) -> CaFiles:
        """See `CaSource.read`; the key is not asked for, and its version is not among those told."""
        names = self.names
        return _files({name: self._latest(name) for name in names.all if name != names.ca_key}, names)

    def read_issuer(self) -> IssuerMaterial:
        """See `CaSource.read_issuer`."""
        kept = self.kept()
        return forms.material_of(kept.files, kept.key, self.where)

    def kept(self) -> Kept:
        """All four as they are now: what every istiod's volume has to come to hold.

        Raises:
            As `CaSource.read`. InvalidPem: The key cannot be read.
        """
        files, versions, key_text = self._read()
        return Kept(files, versions, self._key(key_text))

    def half_switched(self) -> bool:
        """Whether certificate and key are of two CAs: a switch was interrupted between the two writes.

        An istiod that runs takes nothing of it, and one that starts dies of it: only the rest of the switch helps.

        Raises:
            As `kept`. InvalidPem: There is no certificate.
        """
        kept = self.kept()
        signer = certificates_of(kept.files.ca_cert, self.where)
        if not signer:
            raise InvalidPem("no certificate", where=self.where, observed="ca-cert without one", expected="one")
        return not signer[0].key_matches(kept.key)

    def ensure(self, *, root_cert: str | None = None, issuer: IssuerMaterial | None = None) -> tuple[Change, ...]:
        """See `CaSource.ensure`. One change per secret, in the order of writing.

        Raises:
            InvalidInput: A secret is disabled or deleted, or a text too large. Nothing was written.
            Denied, Throttled, Unreachable, ServerFault: As the vault; what was written stays, and the same call goes on
                from there.
        """
        # 1. What is there, and what is to be.
        present, versions, key_text = self._read()
        old_key = self._key_or_none(key_text)
        plan = planned(present, old_key, root_cert=root_cert, issuer=issuer, where=self.where, now=self._now())
        plan = self._serving_both(present, plan)
        # 2. Would istiod start with it, and take it? Would the vault?
        if plan.why:
            verify_files(plan.files, plan.key, self.where, now=self._now())
        same_key = old_key is not None and plan.key == old_key
        wanted = self._texts(plan, key_text if same_key else plan.key.pem().decode("ascii"))
        require_fits(wanted, self.vault.url)
        held = {
            self.names.root_cert: present.root_cert, self.names.ca_cert: present.ca_cert,
            self.names.cert_chain: present.cert_chain, self.names.ca_key: key_text,
        }  # fmt: skip
        # 3. Write what differs, in the order that keeps the moments in between whole.
        changes = []
        for name in self.order(present, plan):
            before = self._fingerprints(name, held[name])
            if held[name] == wanted[name]:
                changes.append(Change(self._place(name), before, before, False, versions[name], versions[name]))
                continue
            if name == self.names.ca_cert and self.before_switch is not None:
                self.before_switch()
            after = self._fingerprints(name, wanted[name])
            written, wrote = self.vault.put(name, wanted[name], self.tags, fingerprint=after[0] if after else "")
            changes.append(Change(self._place(name), before, after, wrote, versions[name], written.version, plan.why))
        return tuple(changes)

    def create(self, files: CaFiles, key: PrivateKey) -> tuple[Change, ...]:
        """Make the four secrets for an add-on that is not enabled yet; idempotent, as `ensure`.

        Raises:
            As `verify_files`, and as `ensure`.
        """
        verify_files(files, key, self.where, now=self._now())
        wanted = {
            self.names.root_cert: files.root_cert, self.names.cert_chain: files.cert_chain,
            self.names.ca_cert: files.ca_cert, self.names.ca_key: key.pem().decode("ascii"),
        }  # fmt: skip
        require_fits(wanted, self.vault.url)
        changes = []
        for name, text in wanted.items():
            before = self.vault.find(name)
            held = self._fingerprints(name, before.text) if before else ()
            after = self._fingerprints(name, text)
            if before is not None and name == self.names.ca_key and self._key_or_none(before.text) == key:
                changes.append(Change(self._place(name), held, held, False, before.version, before.version))
                continue
            written, wrote = self.vault.put(name, text, self.tags, fingerprint=after[0] if after else "")
            version = before.version if before else ""
            changes.append(
                Change(self._place(name), held, after, wrote, version, written.version, "it is made" if wrote else "")
            )
        return tuple(changes)

    def others(self, files: CaFiles, key: PrivateKey) -> tuple[str, ...]:
        """Which of the four hold something else than these, each with what: another CA, or what nobody can read.

        What is not there at all is not among them. Compared is what a text is about, not its bytes.

        Raises:
            InvalidInput: One is disabled. Denied, Throttled, Unreachable, ServerFault: As the vault.
        """
        names = self.names
        wanted = {
            names.root_cert: files.root_cert, names.ca_cert: files.ca_cert, names.cert_chain: files.cert_chain,
            names.ca_key: key.pem().decode("ascii"),
        }  # fmt: skip
        found = []
        for name, text in wanted.items():
            present = self.vault.find(name)
            if present is None:
                continue
            held = self._fingerprints(name, present.text)
            if held != self._fingerprints(name, text):
                found.append(f"{name}: {', '.join(each[:16] for each in held) or 'nothing that can be read'}")
        return tuple(found)

    def order(self, present: CaFiles, plan: Planned) -> tuple[str, ...]:
        """The names in the order of writing."""
        names = self.names
        group = (names.cert_chain, names.ca_cert, names.ca_key)
        with contextlib.suppress(CapstanError):
            old = Bundle(certificates_of(present.root_cert, self.where)).fingerprints
            new = Bundle(certificates_of(plan.files.root_cert, self.where)).fingerprints
            if old - new:
                return (*group, names.root_cert)
        return (names.root_cert, *group)

    def _serving_both(self, present: CaFiles, plan: Planned) -> Planned:
        """The plan with a chain that serves the present signer as well as the new one."""
        wanted = certificates_of(plan.files.cert_chain, self.where)
        with contextlib.suppress(CapstanError):
            there = certificates_of(present.cert_chain, self.where)
            if there[:1] == wanted[:1] and set(wanted) <= set(there):  # an earlier try has written it
                return replace(plan, files=replace(plan.files, cert_chain=present.cert_chain))
        if plan.files.ca_cert == present.ca_cert:
            return plan
        try:
            signer = certificates_of(present.ca_cert, self.where)[0]
            path = forms.between(signer, present, self.where)
        except (CapstanError, IndexError):
            return plan  # who signs now cannot be read, so nobody's chain can be kept for it
        chain = grown(plan.files.cert_chain, [each for each in path if each not in wanted])
        return replace(plan, files=replace(plan.files, cert_chain=chain))

    def _read(self) -> tuple[CaFiles, dict[str, str], str]:
        """The public texts, the versions by name, and the key's text."""
        found = {name: self._latest(name) for name in self.names.all}
        versions = {name: secret.version for name, secret in found.items()}
        return _files(found, self.names), versions, found[self.names.ca_key].text

    def _latest(self, name: str) -> SecretText:
        try:
            return self.vault.latest(name)
        except NotFound as error:
            raise NotFound(
                "a secret of the add-on's CA is not in the vault", where=self.vault.where(name),
                observed=error.observed, expected="the four secrets that the add-on was enabled with",
                next_command=f"az keyvault secret list-deleted --id {self.vault.url} (az keyvault secret recover), "
                "or enable the plug-in CA first",
            ) from error  # fmt: skip

    def _texts(self, plan: Planned, key_text: str) -> dict[str, str]:
        names, files = self.names, plan.files
        return {
            names.root_cert: files.root_cert, names.ca_cert: files.ca_cert,
            names.cert_chain: files.cert_chain, names.ca_key: key_text,
        }  # fmt: skip

    def _place(self, name: str) -> str:
        return f"secret {name} in {self.vault.url}"

    def _key(self, text: str) -> PrivateKey:
        return PrivateKey.parse(text, self.vault.where(self.names.ca_key))

    def _key_or_none(self, text: str) -> PrivateKey | None:
        try:
            return self._key(text)
        except CapstanError:
            return None

    def _fingerprints(self, name: str, text: str) -> tuple[Fingerprint, ...]:
        """Of certificates; of a key, that of its public half. What cannot be read counts as none."""
        if name == self.names.ca_key:
            key = self._key_or_none(text)
            return (key.spki_sha256,) if key else ()
        try:
            return tuple(dict.fromkeys(each.fingerprint for each in certificates_of(text, self._place(name))))
        except CapstanError:
            return ()


def _files(found: Mapping[str, SecretText], names: ObjectNames) -> CaFiles:
    version = ",".join(f"{name}@{secret.version}" for name, secret in sorted(found.items()))
    return CaFiles(found[names.root_cert].text, found[names.ca_cert].text, found[names.cert_chain].text, version)


def open_key_vault(
    cluster: Cluster,
    plugin_ca: PluginCa,
    *,
    now: Callable[[], datetime],
    credential: TokenCredential | None = None,
) -> KeyVaultSource:
    """The four secrets of one cluster's add-on.

    Args:
        plugin_ca: With a cluster id, vault and names are what the cluster's profile says; a vault's URL given beside it
            wins (a private endpoint, another cloud).
        credential: Default: azure-identity's DefaultAzureCredential.

    Raises:
        InvalidInput: Nothing names the vault, or the add-on has no plug-in CA. Others: as Azure's API.
    """
    names = ObjectNames(plugin_ca.root_cert, plugin_ca.ca_cert, plugin_ca.ca_key, plugin_ca.cert_chain)
    url = plugin_ca.key_vault
    if plugin_ca.cluster_id:
        # Imported here: a vault that is named needs no look at the cluster's profile.
        from capstan.systems.aks.arm import open_arm
        from capstan.systems.aks.profile import read_profile

        arm = open_arm(plugin_ca.cluster_id, credential)
        profile = read_profile(arm)
        plugin = profile.required_plugin()
        names = ObjectNames(plugin.root_cert, plugin.ca_cert, plugin.ca_key, plugin.cert_chain)
        url = url or plugin.vault_url
    if not url:
        raise InvalidInput(
            "nothing says where the add-on's CA is kept", where=f"cluster {cluster.name}", observed="no key_vault",
            expected="plugin_ca.cluster_id or plugin_ca.key_vault in the inventory",
        )  # fmt: skip
    if len(set(names.all)) != len(names.all):
        raise InvalidInput(
            "two of the four secrets have one name", where=urlsplit(url).hostname or url, observed=", ".join(names.all),
            expected="four names",
        )  # fmt: skip
    return KeyVaultSource(SecretTexts(url, credential), names, cluster_name=cluster.name, now=now)
