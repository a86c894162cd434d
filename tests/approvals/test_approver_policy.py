"""Whose answers count: what may be listed, and the file of a worker that overrides what a launch says."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from ruamel.yaml import YAML

from capstan.approvals.policy import VARIABLE, approver_policy
from capstan.config import ApproverKey, ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import Denied, InvalidInput
from tests.approvals.people import Person, certificate, person, public_line

DOCS = Path(__file__).parents[2] / "docs" / "approvals.md"
ADA, BOB, CARD = person("ada"), person("bob"), person("ada", "x509")


def domain(*approvers: ApproverKey, quorum: int = 1) -> TrustDomain:
    return TrustDomain(name="prod-eu", policy=RotationPolicy(approvers=approvers, quorum=quorum))


def listed(*people: Person, quorum: int = 1) -> TrustDomain:
    return domain(*(someone.listed for someone in people), quorum=quorum)


def refusal(trust_domain: TrustDomain) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        approver_policy(trust_domain, {})
    return raised.value


def test_with_nobody_listed_whoever_resumes_the_run_decides() -> None:
    policy = approver_policy(domain(), {})
    assert (policy.keys, policy.names, policy.quorum) == ((), (), 1)


def test_people_are_listed_with_as_many_keys_as_they_have() -> None:
    policy = approver_policy(listed(ADA, BOB, CARD, quorum=2), {})
    assert policy.names == ("ada", "bob")
    assert [name for name, _ in policy.key_ids] == ["ada", "bob", "ada"]
    assert [key.kind for key in policy.keys_of("ada")] == ["ssh", "x509"]
    assert policy.keys_of("ada")[1].not_after == CARD.certificate.not_after


def test_one_key_may_be_listed_as_a_key_and_as_a_certificate_of_the_same_person() -> None:
    card = Person("ada", "x509", ADA.key, certificate(ADA.key, "ada"))
    assert approver_policy(listed(ADA, card), {}).names == ("ada",)


@pytest.mark.parametrize(
    ("trust_domain", "what", "field"),
    [
        (listed(ADA, BOB, quorum=3), "quorum can never be reached", "field quorum"),
        (listed(ADA, CARD, quorum=2), "quorum can never be reached", "field quorum"),
        (domain(quorum=2), "quorum can never be reached", "field quorum"),
        (listed(ADA, Person("bob", "ssh", ADA.key, ADA.certificate)), "the same key", "field approvers"),
        (listed(ADA, Person("bob", "x509", ADA.key, ADA.certificate)), "the same key", "field approvers"),
        (listed(person("ada"), person("Ada ")), "only in how they are written", "field approvers"),
        (domain(ADA.listed, ApproverKey(name="bob", key="hello")), "cannot be used", "field approvers[1].key (bob)"),
    ],
)
def test_a_list_that_makes_no_sense_is_one_clear_error(trust_domain: TrustDomain, what: str, field: str) -> None:
    error = refusal(trust_domain)
    assert what in error.what
    assert f"policy of trust domain prod-eu, {field}" in error.where


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    ("key", "observed"),
    [
        ("", "not one line"),
        ("ssh-ed25519 AAAA", "ends too early"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", ""),
        (certificate(ADA.key, "ada").pem() + "\n" + certificate(ADA.key, "ada").pem(), "2"),
        (public_line(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (certificate(ec.generate_private_key(ec.SECP256K1()), "ada").pem(), "ECDSA on secp256k1"),
    ],
    ids=["nothing", "cut off", "no certificate", "two certificates", "a short RSA key", "another curve"],
)
def test_a_key_that_cannot_count_is_refused_with_the_reason(key: str, observed: str) -> None:
    error = refusal(domain(ApproverKey(name="ada", key=key)))
    assert observed in error.observed
    assert "approvers[0].key (ada)" in error.where


def test_a_private_key_in_the_list_is_refused_and_not_repeated() -> None:
    secret = pem(rsa.generate_private_key(65537, 2048))
    error = refusal(domain(ApproverKey(name="ada", key=secret)))
    assert error.observed == "a private key"
    assert secret.splitlines()[1] not in str(error)


def test_a_name_of_nothing_is_refused() -> None:
    assert refusal(domain(ApproverKey(name=" ", key=ADA.listed.key))).observed == "no name"


def test_dsa_is_refused() -> None:
    numbers = dsa.generate_parameters(1024).generate_private_key().public_key().public_numbers()
    parts = (b"ssh-dss", *(n.to_bytes(n.bit_length() // 8 + 1, "big") for n in (
        numbers.parameter_numbers.p, numbers.parameter_numbers.q, numbers.parameter_numbers.g, numbers.y)))  # fmt: skip
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    line = f"ssh-dss {base64.b64encode(blob).decode()}"
    assert "'ssh-dss' is not supported" in refusal(domain(ApproverKey(name="ada", key=line))).observed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A worker's file of approvers: Bob, for prod-eu."""
    path = tmp_path / "approvers.yaml"
    YAML().dump({"prod-eu": {"approvers": [BOB.listed.model_dump()], "quorum": 1}}, path)
    return path


def test_a_workers_file_says_who_approves_whatever_a_launch_says(file: Path) -> None:
    policy = approver_policy(listed(ADA, quorum=1), {VARIABLE: str(file)})
    assert policy.names == ("bob",)
    assert policy.source == f"{file}, trust domain prod-eu"
    # Nor can a launch do without approvals by listing nobody.
    assert approver_policy(domain(), {VARIABLE: str(file)}).names == ("bob",)


def test_a_launch_cannot_do_without_the_gates_that_the_workers_file_names(file: Path) -> None:
    lax = TrustDomain(name="prod-eu", policy=RotationPolicy(approvals=frozenset({"trust"})))
    assert approver_policy(lax, {}).gates == {"trust"}
    assert approver_policy(lax, {VARIABLE: str(file)}).gates == {"trust", "issue", "distrust"}
    file.write_text("prod-eu: {approvals: [distrust]}\n")
    assert approver_policy(lax, {VARIABLE: str(file)}).gates == {"distrust"}


def test_a_domains_clusters_cannot_be_rotated_under_another_domains_name(tmp_path: Path) -> None:
    path = tmp_path / "approvers.yaml"
    eu, us = (ClusterRef(name="c", context=context) for context in ("prod-eu", "prod-us"))
    entry = {"quorum": 1}
    YAML().dump(
        {"prod-eu": {**entry, "clusters": [eu.model_dump()]}, "prod-us": {**entry, "clusters": [us.model_dump()]}}, path
    )
    environ = {VARIABLE: str(path)}
    approver_policy(TrustDomain(name="prod-eu", clusters=(eu,)), environ)
    for clusters in ((us,), (eu, us.model_copy(update={"name": "d"}))):
        with pytest.raises(Denied) as raised:
            approver_policy(TrustDomain(name="prod-eu", clusters=clusters), environ)
        assert "context prod-us" in raised.value.observed
        assert raised.value.expected == "c (kubeconfig default, context prod-eu)"
    # In a file of several domains, one that names no clusters could be anybody's.
    YAML().dump({"prod-eu": entry, "prod-us": entry}, path)
    with pytest.raises(InvalidInput) as unsaid:
        approver_policy(TrustDomain(name="prod-eu", clusters=(eu,)), environ)
    assert "field prod-eu.clusters" in unsaid.value.where


def test_a_domain_that_is_not_in_the_workers_file_is_refused(file: Path) -> None:
    with pytest.raises(Denied) as raised:
        approver_policy(TrustDomain(name="prod-us"), {VARIABLE: str(file)})
    assert raised.value.observed == "trust domains prod-eu"


@pytest.mark.parametrize(
    ("text", "where", "observed"),
    [
        ("prod-eu: [", "", "line 2, column 1"),
        ("- prod-eu\n", "", "a list"),
        ("1: {}\n", "", "a dict"),
        ("prod-eu: {quorum: 0}\n", "field prod-eu.quorum", "greater than or equal to 1"),
        ("prod-eu: {approvers: [{name: ada}]}\n", "field prod-eu.approvers[0].key", "Field required"),
        ("prod-eu: {approver: []}\n", "field prod-eu.approver", "Extra inputs"),
        ("prod-eu: {approvers: [{name: ada, key: x}]}\n", "prod-eu, field approvers[0].key", "not one line"),
        ("prod-eu: {quorum: 2}\n", "trust domain prod-eu, field quorum", "2"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path, text: str, where: str, observed: str) -> None:
    path = tmp_path / "approvers.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as raised:
        approver_policy(domain(), {VARIABLE: str(path)})
    assert str(path) in raised.value.where
    assert where in raised.value.where
    assert observed in raised.value.observed


def documented(mark: str) -> str:
    """The YAML block of docs/approvals.md that begins with this line."""
    text = DOCS.read_text()
    start = text.index(f"```yaml\n{mark}") + len("```yaml\n")
    return text[start : text.index("```", start)]


def test_the_files_in_the_documentation_can_be_used_as_they_stand(tmp_path: Path) -> None:
    policy = RotationPolicy.model_validate(YAML(typ="safe").load(documented("policy:"))["policy"])
    found = approver_policy(TrustDomain(name="prod-eu", policy=policy), {})
    assert (found.names, found.quorum) == (("Ada Example", "Bob Example", "Cay Example"), 2)
    path = tmp_path / "approvers.yaml"
    path.write_text(documented("prod-eu:"))
    for name, cluster, people in (("prod-eu", ("west", "prod-eu-west"), 2), ("staging", ("staging", "staging"), 0)):
        ours = TrustDomain(name=name, clusters=(ClusterRef(name=cluster[0], context=cluster[1]),))
        assert len(approver_policy(ours, {VARIABLE: str(path)}).names) == people


def test_a_file_that_is_not_there_is_an_error_and_not_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as raised:
        approver_policy(domain(), {VARIABLE: str(tmp_path / "none.yaml")})
    assert "No such file" in raised.value.observed
