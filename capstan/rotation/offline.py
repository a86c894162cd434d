"""A root that is kept offline: each cluster's issuer key is made here, its certificate comes back signed from there.

    vault                     key of each new issuer, made once per rotation; it never leaves the vault and one step
    rotation record           the signing requests (public), so that every run and every person sees the same ones
    machine without network   the root's key; `capstan sign` there, or any other CA software

What comes back is believed only after two verifiers agree on it and it answers exactly the requests of this rotation.
The root's private key is never asked for, and nothing here could take it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from capstan.audit import audited_step
from capstan.errors import GateRefused, InvalidCertificate, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.pki.csr import Request, make_request, parse_request
from capstan.pki.keys import PrivateKey
from capstan.pki.verify import GIVEN_ROOT, verify_issuer
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.naming import issuer_name
from capstan.rotation.preparing import keep_target, present_issuers, signing_root_of
from capstan.rotation.session import NEW_ROOT
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from capstan.cluster.record import RotationRecord
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation

LARGEST: Final = 200_000
"""Most characters of a signed chain: some hundred certificates."""
_NOTE: Final = "signing-request/"  # notes in the rotation record: cluster -> PEM of its request


@dataclass(frozen=True, slots=True)
class Asked:
    """One cluster's request, to be signed by the offline root.

    Attributes:
        request: PKCS#10, its proof of possession verified.
        path: Where it was written on this machine.
    """

    cluster: str
    request: Request
    path: Path


_chain_path: ContextVar[Path | None] = ContextVar("capstan_signed_chain", default=None)


@contextmanager
def signed_chain_at(path: Path | None) -> Iterator[None]:
    """Where the enclosed calls look for the signed chain; None for the place in the domain's home."""
    token = _chain_path.set(path)
    try:
        yield
    finally:
        _chain_path.reset(token)


def directory_of(domain: TrustDomain, rotation: str) -> Path:
    """Where a rotation's requests are written."""
    return domain.home_path() / "requests" / f"{domain.name}-{rotation}"


def chain_path(domain: TrustDomain, rotation: str) -> Path:
    """Where the signed chain is looked for: the file that was named, else one beside the requests."""
    return _chain_path.get() or directory_of(domain, rotation) / "signed-chain.pem"


def recall_signed(rotation: Rotation) -> bool:
    """Whether the signed issuers are in the vault already; then they are what the rotation goes to."""
    with audited_step("recall-signed"):
        record = rotation.record()
        text = record.notes.get(NEW_ROOT)
        if text is None or not all(
            material.entry(rotation.vault, rotation.id, _issuer_entry(rotation, c)) for c in rotation.systems
        ):
            return False
        root = Bundle.parse(text, f"record of rotation {rotation.id}").certificates[0]
        target = material.minted_before(
            rotation.vault, domain=rotation.domain.name, rotation=rotation.id, clusters=rotation.systems, root=root
        )
        keep_target(rotation, target)
        return True


def request_signing(rotation: Rotation) -> tuple[Asked, ...]:
    """Make each cluster's new issuer key in the vault, once per rotation, and a signing request for it.

    The requests are kept in the record and written to files; both are public.

    Raises:
        GateRefused: Only the issuers are to be rotated, and a cluster signs with its root itself.
        Permanent, Retryable: As the vault and the clusters.
    """
    with audited_step("request-signing"):
        present = present_issuers(rotation)
        if rotation.kind == "issuer":
            signing_root_of(rotation.original, present)
        requests = {c: _request(rotation, c, issuer) for c, issuer in present.items()}
        texts = {_NOTE + cluster: request.pem() for cluster, request in requests.items()}
        kept = rotation.record().notes
        if any(kept.get(name) != text for name, text in texts.items()):
            rotation.remember(lambda record: record.model_copy(update={"notes": {**record.notes, **texts}}))
            rotation.note(
                "signing-requested",
                {
                    c: {"request": r.fingerprint, "subject": r.subject, "key": r.spki_sha256}
                    for c, r in requests.items()
                },
            )
        directory = directory_of(rotation.domain, rotation.id)
        directory.mkdir(parents=True, exist_ok=True)
        asked = tuple(Asked(c, request, directory / f"{c}.csr.pem") for c, request in requests.items())
        for each in asked:
            each.path.write_text(each.request.pem(), encoding="ascii")
            watcher().step("wait for a signature", f"request {each.path}, SHA-256 {each.request.fingerprint[:16]}")
        return asked


def accept_signed(rotation: Rotation, asked: Sequence[Asked], text: str, where: str) -> None:
    """Take back what the offline root signed, after verifying it, and put each issuer with its key into the vault.

    Args:
        text: PEM: for each cluster its issuer, what stands between it and the root, and the root itself (needed where
            the root is new); in any order.
        where: Where it came from, for messages.

    Raises:
        InvalidPem: It is no clean PEM of certificates.
        InvalidInput: A request is not answered, or there is no root.
        InvalidCertificate: The root is not new, has the name or the key of a trusted one, or an issuer ends too soon.
        VerificationFailed: A verifier refuses an issuer.
    """
    with audited_step("accept-signed"):
        if len(text) > LARGEST:
            raise InvalidInput(
                "this is no signed chain",
                where=where,
                observed=f"{len(text)} characters",
                expected=f"at most {LARGEST}",
            )
        found = Bundle.parse(text.strip() + "\n", where).certificates
        chains = {}
        for each in asked:
            chain = verified(
                each, found, where, trusted=rotation.original, new=rotation.takes_new_root, now=rotation.now()
            )
            _require_time(rotation, chain, where)
            chains[each.cluster] = chain
        root = one_root(chains.values(), where)
        # The root first: an issuer without it would be taken for one that was never signed, and is asked for again.
        rotation.remember(lambda record: _with_root(record, root))
        for each in asked:
            _store(rotation, each, chains[each.cluster])
        rotation.note("signed-accepted", {c: [x.fingerprint for x in chain] for c, chain in chains.items()})
    if not recall_signed(rotation):
        raise GateRefused(
            "the signed issuers cannot be read back from the vault", where=rotation.vault.url,
            observed="no entry of this rotation", expected="the entries that were just written",
            next_command=rotation.command,
        )  # fmt: skip


def parsed(text: str, where: str) -> tuple[Certificate, ...]:
    """The certificates of a signed chain.

    Raises:
        InvalidPem: It is no clean PEM of certificates. InvalidInput: It is too long to be one.
    """
    if len(text) > LARGEST:
        raise InvalidInput(
            "this is no signed chain", where=where, observed=f"{len(text)} characters", expected=f"at most {LARGEST}"
        )
    return Bundle.parse(text.strip() + "\n", where).certificates


def one_root(chains: Iterable[Sequence[Certificate]], where: str) -> Certificate:
    """The root that all chains end in.

    Raises:
        InvalidInput: They end in different ones.
    """
    roots = {chain[-1] for chain in chains}
    if len(roots) > 1:
        raise InvalidInput(
            "the issuers of one trust domain were signed under different roots", where=where,
            observed="; ".join(sorted(f"{root.subject} {root.fingerprint[:16]}" for root in roots)),
            expected="one root", next_command="sign all requests of this rotation with the same root",
        )  # fmt: skip
    return roots.pop()


def _request(rotation: Rotation, cluster: str, present: Certificate) -> Request:
    """The request of a cluster's key: the text in the record, unless it is another key's (the vault was changed)."""
    domain = rotation.domain
    reference = rotation.vault.ensure(
        material.secret_name(domain.name, f"request-{cluster}"),
        lambda: Material(private_key_pem=PrivateKey.generate().pem().decode("ascii"), where=f"issuer of {cluster}"),
        material.tags_of(domain.name, rotation.id),
    )
    kept = rotation.record().notes.get(_NOTE + cluster)
    if kept is not None:
        request = parse_request(kept, f"record of rotation {rotation.id}")
        if request.spki_sha256 == reference.fingerprint:
            return request
    key = PrivateKey.parse(rotation.vault.get(reference).unsafe_private_key_pem(), str(reference))
    return make_request(key, issuer_name(domain.system, cluster, present))


def verified(
    asked: Asked, found: Sequence[Certificate], where: str, *, trusted: Bundle, new: bool, now: datetime
) -> tuple[Certificate, ...]:
    """The chain that answers a request, issuer first, root last; both verifiers agree on it.

    Args:
        found: Everything that was brought.
        trusted: The roots that are trusted now.
        new: Whether the root has to be a new one; else it has to be one of those.

    Raises:
        As `accept_signed`.
    """
    issuer = next((each for each in found if asked.request.answered_by(each)), None)
    if issuer is None:
        raise InvalidInput(
            f"the request of cluster {asked.cluster} is not answered", where=where,
            observed="; ".join(f"{each.subject} of key {each.spki_sha256[:16]}" for each in found),
            expected=f"a certificate of key {asked.request.spki_sha256[:16]}",
            next_command=f"capstan sign --request {asked.path} --root-cert ... --root-key ...",
        )  # fmt: skip
    roots = [each for each in found if each.self_signed] if new else list(trusted)
    if not roots:
        raise InvalidInput(
            "the signed chain lacks its root", where=where,
            observed="; ".join(each.subject for each in found), expected="the new root's certificate, too",
            next_command="append the root's certificate (never its key) to the file",
        )  # fmt: skip
    others = [each for each in found if each not in (issuer, *roots)]
    chain = verify_issuer(issuer, roots, now, others, relax=GIVEN_ROOT).chain
    if new:
        _require_new(chain[-1], trusted, where)
    return chain


def _require_new(root: Certificate, trusted: Bundle, where: str) -> None:
    """A new root is another certificate, of another name and another key, than every root that is trusted."""
    for old in trusted:
        same = [
            what
            for what, alike in (
                ("certificate", root.fingerprint == old.fingerprint),
                ("name", root.raw.subject == old.raw.subject),
                ("key", root.spki_sha256 == old.spki_sha256),
            )
            if alike
        ]
        if same:
            raise InvalidCertificate(
                "the signing root is not a new one", where=where,
                observed=f"the same {' and '.join(same)} as {old.subject} {old.fingerprint[:16]}, which is trusted now",
                expected="a root of its own name and key: proxies look for a root by its name",
                next_command="capstan sign --new-root --common-name NAME --out-dir DIR, and sign with that one",
            )  # fmt: skip


def _require_time(rotation: Rotation, chain: Sequence[Certificate], where: str) -> None:
    """Long enough for every leaf to renew twice, and for the restarts in between."""
    seen = rotation.recent()
    lifetime = max((cluster.leaf_lifetime for cluster in seen.clusters), default=0.0)
    needed = rotation.now() + 2 * timedelta(seconds=lifetime) + rotation.domain.policy.restart_deadline
    for certificate in chain:
        if certificate.not_after < needed:
            raise InvalidCertificate(
                "a signed certificate ends too soon to be rotated to", where=where,
                observed=f"{certificate.subject} {certificate.fingerprint[:16]} until {certificate.not_after:%F %T}Z",
                expected=f"later than {needed:%F %T}Z: two leaf lifetimes and a restart from now",
                next_command="sign again with a longer --validity",
            )  # fmt: skip


def _store(rotation: Rotation, asked: Asked, chain: Sequence[Certificate]) -> None:
    """The issuer, what stands between it and the root, and its key, as one vault entry."""
    domain = rotation.domain.name
    tags = material.tags_of(domain, rotation.id)
    key = material.entry(rotation.vault, rotation.id, material.secret_name(domain, f"request-{asked.cluster}"))
    if key is None:
        raise GateRefused(
            "the key that this signature is for is not in the vault", where=rotation.vault.url,
            observed=f"no usable entry for the request of cluster {asked.cluster}",
            expected="the key made when the signature was asked for",
            next_command="use the vault that this rotation was begun with (--vault)",
        )  # fmt: skip
    kept = rotation.vault.get(key)
    pem = "\n".join(certificate.pem() for certificate in chain[:-1])
    name = _issuer_entry(rotation, asked.cluster)
    rotation.vault.ensure(name, lambda: Material(pem, kept.unsafe_private_key_pem(), where=asked.cluster), tags)


def _issuer_entry(rotation: Rotation, cluster: str) -> str:
    return material.secret_name(rotation.domain.name, f"issuer-{cluster}")


def _with_root(record: RotationRecord, root: Certificate) -> RotationRecord:
    return record.model_copy(update={"notes": {**record.notes, NEW_ROOT: root.pem()}})
