"""Two real Envoys judge the prober: the same certificates get the same verdicts.

What the prober counts is only worth something if its handshakes fail exactly where those of real proxies would. So each
situation is tried by two Envoys, and by each kind of proxy whose handshakes the prober makes: Linkerd's (DNS names, TLS
1.3) and Istio's (SPIFFE names). Each situation is tried twice: with the server as the odd one, and with the client.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from infra.lab.istio.inbound import Inbound
from infra.lab.istio.material import Material as IstioMaterial
from infra.lab.istio.mesh import IstioMesh
from infra.lab.linkerd.listener import Listener
from infra.lab.linkerd.material import Key
from infra.lab.linkerd.material import Material as LinkerdMaterial
from infra.lab.linkerd.mesh import Mesh as LinkerdMesh
from tests.lab.envoy_pair import Ca, Connection, Held, Pair, Usage, held

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOUR = timedelta(hours=1)
LINKERD = {
    "client": "web.shop.serviceaccount.identity.linkerd.cluster.local",
    "server": "db.shop.serviceaccount.identity.linkerd.cluster.local",
    "stranger": "db.bank.serviceaccount.identity.linkerd.cluster.local",
}
ISTIO = {
    "client": "spiffe://cluster.local/ns/shop/sa/web",
    "server": "spiffe://cluster.local/ns/shop/sa/db",
    "stranger": "spiffe://other.domain/ns/shop/sa/db",
}
REFUSED, ACCEPTED = False, True
ROOT_TOO_SHORT = "path length of the root violated"
# Linkerd's proxies do not look at an anchor's own dates (rustls and webpki: an anchor is a name and a key), Envoys do.
RUSTLS_IS_LAXER = frozenset({"expired root"})
ENVOY_IS_LAXER = {ROOT_TOO_SHORT}
"""BoringSSL does not hold a self-issued root's own path length against the chain below it; OpenSSL does, as Go does, by
whose verdict linkerd-identity and istiod accept an issuer. So the prober is the stricter one: it may count a failure
that Envoys would not have, and never misses one."""


@dataclass(frozen=True)
class Ends:
    """The odd one, and whoever it meets; the verdict both on a server and on a client, or on each of them.

    Attributes:
        odd: Given its identity and the stranger's.
        other: Given its identity.
        as_server, as_client: Whether the handshake is to succeed with the odd one there.
        as_client_of_istio: The same for Istio, where it differs: there servers look at their clients' names.
    """

    odd: Callable[[str, str], Held]
    other: Callable[[str], Held]
    as_server: bool
    as_client: bool
    as_client_of_istio: bool | None = None


def situations() -> dict[str, Ends]:
    """Fresh certificates for each situation."""
    old, new = Ca.root("root.linkerd.cluster.local"), Ca.root("root.2.linkerd.cluster.local")
    old_issuer, new_issuer = old.below("identity.linkerd.cluster.local"), new.below("identity.linkerd.cluster.local")
    namesake = Ca.root("root.linkerd.cluster.local")
    namesakes = namesake.below("identity.linkerd.cluster.local")
    bare, bare_too = (Ca.root("root.linkerd.cluster.local", identifiers=False) for _ in "ab")
    bare_issuer = bare.below("identity.linkerd.cluster.local", identifiers=False)
    tight = Ca.root("tight root", path_length=0)
    below_tight = tight.below("first", path_length=None).below("second")
    below_issuer = Ca.root("roomy root", path_length=None).below("issuer of path length 0").below("below it")
    roomy = Ca(below_issuer.above[-1], None)
    rsa_root, p384_root = Ca.root("rsa root", kind="RSA"), Ca.root("p384 root", kind="P-384")
    old_expired = Ca.root("expired root", begins=-2 * HOUR, ends=-HOUR)
    issuer_expired = old.below("expired issuer", begins=-2 * HOUR, ends=-HOUR)
    no_ca = _leaf_that_signs(old)
    client_only = old.below("clients' issuer", usages=[Usage.CLIENT_AUTH])

    def case(
        issuer: Ca, roots: list[Ca], verdict: bool, *, trusts: list[Ca] | None = None, client: bool | None = None,
        **leaf: Any,
    ) -> Ends:  # fmt: skip
        """The odd one's leaf is of `issuer`; whom it meets trusts `roots`, has a leaf of the old issuer, and is trusted
        by the odd one unless that `trusts` others."""
        return Ends(
            lambda name, _: held(issuer, name, trusts if trusts is not None else [old], **leaf),
            lambda name: held(old_issuer, name, roots),
            verdict,
            verdict if client is None else client,
        )

    return {
        "right": case(old_issuer, [old], ACCEPTED),
        "of a root that is not trusted": case(new_issuer, [old], REFUSED),
        "of one of two roots in the bundle": case(new_issuer, [old, new], ACCEPTED),
        "of the other of two roots in the bundle": case(old_issuer, [new, old], ACCEPTED, trusts=[new, old]),
        "trusts another root": case(old_issuer, [old], REFUSED, trusts=[new]),
        "expired leaf": case(old_issuer, [old], REFUSED, begins=-2 * HOUR, ends=-timedelta(minutes=1)),
        "leaf not yet valid": case(old_issuer, [old], REFUSED, begins=HOUR, ends=2 * HOUR),
        "expired issuer": case(issuer_expired, [old], REFUSED),
        "expired root beside a good one": case(old_issuer, [old_expired, old], ACCEPTED),
        "expired root": case(old_expired.below("its issuer"), [old, old_expired], REFUSED),
        "intermediate not sent": case(old_issuer, [old], REFUSED, alone=True),
        "intermediate not sent, but trusted as an anchor": case(old_issuer, [old_issuer], ACCEPTED, alone=True),
        "issuer in the bundle instead of its root": case(new_issuer, [new_issuer], ACCEPTED),
        "RSA leaf": case(old_issuer, [old], ACCEPTED, kind="RSA"),
        "P-384 leaf": case(old_issuer, [old], ACCEPTED, kind="P-384"),
        "RSA root": case(rsa_root.below("issuer below rsa"), [rsa_root], ACCEPTED),
        "P-384 root": case(p384_root.below("issuer below p384"), [p384_root], ACCEPTED),
        "of a root of the same name and another key": case(namesakes, [old], REFUSED),
        "of one of two roots of one name, with identifiers": case(namesakes, [old, namesake], ACCEPTED),
        "of the first of two roots of one name, without identifiers": case(bare_issuer, [bare, bare_too], ACCEPTED),
        "of the second of two roots of one name, without identifiers": case(bare_issuer, [bare_too, bare], REFUSED),
        "path length of an issuer violated": case(below_issuer, [roomy], REFUSED),
        ROOT_TOO_SHORT: case(below_tight, [tight], REFUSED),
        "signed by a leaf": case(no_ca, [old], REFUSED),
        "no extended key usage": case(old_issuer, [old], ACCEPTED, usages=()),
        "extended key usage of clients alone": case(
            old_issuer, [old], REFUSED, client=ACCEPTED, usages=[Usage.CLIENT_AUTH]
        ),
        "extended key usage of servers alone": case(
            old_issuer, [old], ACCEPTED, client=REFUSED, usages=[Usage.SERVER_AUTH]
        ),
        "issuer for clients alone": case(client_only, [old], REFUSED, client=ACCEPTED),
        "name of another trust domain": Ends(
            lambda name, stranger: held(old_issuer, name, [old], named=stranger),
            lambda name: held(old_issuer, name, [old]),
            REFUSED,
            ACCEPTED,
            REFUSED,
        ),
    }


def _leaf_that_signs(root: Ca) -> Ca:
    leaf = held(root.below("honest issuer"), "leaf.cluster.local", [root])
    certificates = x509.load_pem_x509_certificates(leaf.chain_pem.encode())
    return Ca(certificates[0], leaf.key, (certificates[1], root.certificate))


@dataclass(frozen=True)
class Case:
    """One handshake to be judged."""

    title: str
    situation: str
    connection: Connection
    succeeds: bool


def cases(names: dict[str, str]) -> list[Case]:
    """Each situation from both ends, with the names of one mesh."""
    istio = names is ISTIO
    clients_of = "spiffe://cluster.local/" if istio else ""
    found = []
    for title, ends in situations().items():
        client, server, stranger = names["client"], names["server"], names["stranger"]
        sni = "outbound_.80_._.db.shop.svc.cluster.local" if istio else server
        as_server = Connection(ends.other(client), ends.odd(server, stranger), sni, clients_of)
        as_client = Connection(ends.odd(client, stranger), ends.other(server), sni, clients_of)
        of_istio = ends.as_client_of_istio
        verdict = of_istio if istio and of_istio is not None else ends.as_client
        found += [
            Case(f"server: {title}", title, as_server, ends.as_server),
            Case(f"client: {title}", title, as_client, verdict),
        ]
    return found


async def linkerds_verdict(each: Connection, ip: str, directory: Path) -> bool:
    """What the prober counts between two proxies of Linkerd."""

    def material(own: Held) -> LinkerdMaterial:
        chain = tuple(x509.load_pem_x509_certificates(own.chain_pem.encode()))
        return LinkerdMaterial(own.identity, own.roots_pem, Key(own.key, b""), chain, directory).load()

    async def echo(reader: asyncio.StreamReader, writer: Any) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()

    server = material(each.server)
    listener = Listener(ip, 4143, lambda _tls: server.server, echo)
    listener.start()
    try:
        return await counted(LinkerdMesh(str).handshake, material(each.client), ip, server.name)
    finally:
        await listener.stop()


async def istios_verdict(each: Connection, ip: str, directory: Path) -> bool:
    """What the prober counts between two light proxies of Istio."""
    now = datetime.now(UTC)

    def material(own: Held) -> IstioMaterial:
        return IstioMaterial(
            own.identity, "cluster.local", own.key_pem.encode(), own.chain_pem, own.roots_pem, now, now, directory
        ).load()

    server = material(each.server)
    inbound = Inbound(ip, 15006, lambda: server.server)
    inbound.start()
    try:
        return await counted(IstioMesh(str).handshake, material(each.client), ip, server.identity)
    finally:
        await inbound.stop()


async def counted(handshake: Callable[..., Any], client: Any, ip: str, name: str) -> bool:
    """Whether the prober would count this handshake as one that succeeded."""
    server = SimpleNamespace(container=SimpleNamespace(ip=ip, namespace="shop"), name=name)
    try:
        async with asyncio.timeout(10):
            await handshake(client, server)
    except (OSError, EOFError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("names", "prober"), [(LINKERD, linkerds_verdict), (ISTIO, istios_verdict)], ids=["linkerd", "istio"]
)
def test_two_real_envoys_and_the_prober_come_to_the_same_verdicts(
    tmp_path: Path, names: dict[str, str], prober: Callable[[Connection, str, Path], Any]
) -> None:
    table = cases(names)
    net = f"127.{random.randint(2, 249)}.{random.randint(1, 254)}"

    async def judged(envoys: Pair) -> dict[str, tuple[bool, bool]]:
        return {
            case.title: (await envoys.accepts(index), await prober(case.connection, f"{net}.{index + 4}", tmp_path))
            for index, case in enumerate(table)
        }

    with Pair(tmp_path, f"{net}.2", f"{net}.3", [case.connection for case in table]) as envoys:
        found = asyncio.run(judged(envoys))
    laxer = RUSTLS_IS_LAXER if names is LINKERD else frozenset[str]()
    wanted = {
        case.title: (case.succeeds or case.situation in ENVOY_IS_LAXER, case.succeeds or case.situation in laxer)
        for case in table
    }
    assert {title: verdicts for title, verdicts in found.items() if verdicts != wanted[title]} == {}
    assert sum(case.succeeds for case in table) >= 20
    assert sum(not case.succeeds for case in table) >= 20
