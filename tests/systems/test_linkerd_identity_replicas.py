"""Each replica of linkerd-identity, judged by its own word: what it holds, what it refuses, and what would end it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan.cluster.resources import EVENTS, PODS
from capstan.errors import GateRefused, IssuerNotTaken
from capstan.pki.bundle import Bundle
from capstan.systems.base import Status
from capstan.systems.linkerd.identity import (
    KUBELET_DELAY,
    Replica,
    admin_port,
    read_replicas,
    why_apart,
    writer_of,
    written_at,
)
from capstan.systems.linkerd.identity_judging import (
    hear,
    require_clocks,
    require_no_crash,
    require_readable,
    signing_faults,
    why_wrong,
)
from capstan.systems.linkerd.identity_texts import Word, clock_difference, last_word
from capstan.systems.linkerd.issuer import require_trusted_by_all
from capstan.systems.linkerd.layout import Scheme
from capstan.trust.gates import may_enter
from capstan.trust.phase import Phase
from capstan.trust.safety import SwitchIssuer, verdict, who_would_break
from tests.pki.ca import NOW as THEN
from tests.pki.ca import make
from tests.support.apiserver import Running
from tests.systems.identity_mesh import CERTIFY, UPDATED, Replicas, skipping
from tests.systems.linkerd_evidence import BUNDLE, ISSUER, OTHER, ROOT, YEAR, check, healthy, secret, with_view
from tests.trust.domains import NEW, NOW, OLD, only, settled
from tests.trust.domains import domain as observed

RSA = make(
    "identity.linkerd.cluster.local", ROOT, path_length=0, end=THEN + YEAR, key=rsa.generate_private_key(65537, 2048)
)
P384 = make("identity.linkerd.cluster.local", ROOT, path_length=0, key=ec.generate_private_key(ec.SECP384R1()))
FOREIGN = make("identity.linkerd.cluster.local", OTHER, path_length=0)
TRUST_ROOTS = BUNDLE.fingerprints
UNKNOWN = (
    "failed to verify issuer credentials for 'identity.linkerd.cluster.local' with trust anchors:"
    " x509: certificate signed by unknown authority"
)


def proves(row: str, what: str) -> pytest.MarkDecorator:
    return pytest.mark.proves("identity", row, what)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def mesh(api):
    cluster = api.connect()
    replicas = Replicas(api, cluster)
    yield replicas
    for name in (*replicas.logs, *replicas.forgotten):
        cluster.delete(PODS, name, "linkerd")
    replicas.close()
    cluster.close()


def utc() -> datetime:
    return datetime.now(UTC)


def by_name(replicas):
    return {replica.pod: replica for replica in replicas}


def view_of(issuer=ISSUER, bundle=BUNDLE):
    view = healthy(bundle=bundle, issuer=issuer).view
    roots = frozenset({ROOT.certificate.fingerprint}) if issuer is not FOREIGN else frozenset()
    seen = replace(view.observation, issuer=replace(view.observation.issuer, anchors=roots))
    return replace(view, observation=seen)


# --- what a replica says ----------------------------------------------------------------------------------------------


@proves("lost Events", "a replica that logged the swap has taken the issuer, though no Event of it was ever written")
def test_a_replicas_log_is_asked_and_not_its_events(mesh):
    name, written = mesh.replica("identity-a"), utc() - timedelta(seconds=1)
    mesh.says(name, "info", UPDATED)
    assert mesh.cluster.list(EVENTS, "linkerd").items == ()
    assert [replica.word for replica in read_replicas(mesh.cluster, "linkerd", since=written)] == [Word.TAKEN]
    began = mesh.cluster.clock()
    (heard,) = hear(mesh.cluster, view_of(), ISSUER.certificate, written, until=began + 60, now=utc)
    assert heard.said == UPDATED
    assert mesh.cluster.clock() - began < 5


@proves("IssuerUpdateSkipped", "the replica, its node and its own words are named; another that took it is not")
def test_one_replica_that_skips_the_issuer_stops_everything_and_is_named(mesh):
    taker, skipper = mesh.replica("identity-b"), mesh.replica("identity-c")
    written = utc() - timedelta(seconds=1)
    mesh.says(taker, "info", UPDATED)
    mesh.says(skipper, "warning", skipping(UNKNOWN))
    with pytest.raises(IssuerNotTaken) as refused:
        hear(mesh.cluster, view_of(), ISSUER.certificate, written, until=mesh.cluster.clock() + 60, now=utc)
    error = refused.value
    assert error.what == "1 identity replica(s) do not take the issuer"
    assert error.observed.startswith(f"replica {skipper} on node node-1: Skipping issuer update")
    assert "unknown authority" in error.observed
    assert taker not in error.observed
    assert "kubectl rollout restart deployment/linkerd-identity -n linkerd" in error.next_command


@proves("dead watcher", "a replica that says nothing is waited for so long, and is then started anew; nothing stops")
def test_a_silent_replica_is_no_reason_to_stop(mesh):
    mesh.replica("identity-d", started=f"{utc() - timedelta(hours=1):%FT%TZ}")
    written = utc() - timedelta(seconds=89)
    began = mesh.cluster.clock()
    (heard,) = hear(mesh.cluster, view_of(), ISSUER.certificate, written, until=began + 60, now=utc)
    assert (heard.word, heard.problem) == (Word.NOTHING, "")
    assert 0.5 < mesh.cluster.clock() - began < 10


def test_words_of_before_the_issuer_was_written_do_not_count(mesh):
    name = mesh.replica("identity-e")
    mesh.says(name, "warning", skipping("an old story"))
    later = utc() + timedelta(seconds=5)
    (replica,) = read_replicas(mesh.cluster, "linkerd", since=later)
    assert replica.word is Word.NOTHING


@pytest.mark.parametrize(
    "line",
    [
        'time="2026-11-22T05:00:00Z" level=warning msg="Skipping issuer update as certs could not be read: \\"x\\""',
        '{"level":"warning","msg":"Skipping issuer update as certs could not be read: \\"x\\"","time":"2026-11-22"}',
    ],
    ids=["plain", "json"],
)
def test_both_log_formats_are_read(line):
    """`-log-format=plain|json` of the control plane (logrus)."""
    assert last_word(f"first\n{line}\n") == (Word.SKIPPED, 'Skipping issuer update as certs could not be read: "x"')


def test_the_last_word_counts():
    assert last_word(f'msg="{skipping("x")}"\nmsg="{UPDATED}"')[0] is Word.TAKEN
    assert last_word(f'msg="{UPDATED}"\nmsg="{skipping("x")}"')[0] is Word.SKIPPED


@proves("replicas out of step", "the one that holds another issuer is told by the end of what it has in memory")
def test_a_replica_that_holds_another_issuer_is_told_by_its_end(mesh):
    ends = ISSUER.certificate.not_after
    ahead, behind = mesh.replica("identity-f"), mesh.replica("identity-g")
    mesh.metrics[ahead] = f"issuer_cert_ttl_seconds {(ends - utc()).total_seconds():.3f}\n"
    mesh.metrics[behind] = f"issuer_cert_ttl_seconds {(ends - utc()).total_seconds() - 86400:.3f}\n"
    found = by_name(read_replicas(mesh.cluster, "linkerd"))
    assert why_wrong(found[ahead], ISSUER.certificate) == ""
    assert "its issuer ends" in why_wrong(found[behind], ISSUER.certificate)


@proves("RSA issuer", "a replica that took it and then signed nothing is told by its own counters")
def test_a_replica_that_signs_nothing_is_told_by_its_counters(mesh):
    silent, busy, fresh = mesh.replica("identity-h"), mesh.replica("identity-i"), mesh.replica("identity-j")
    mesh.metrics[silent] = f'grpc_server_handled_total{{grpc_code="Internal",{CERTIFY}}} 7\n'
    mesh.metrics[busy] = (
        f'grpc_server_handled_total{{grpc_code="Internal",{CERTIFY}}} 1\n'
        f'grpc_server_handled_total{{grpc_code="OK",{CERTIFY}}} 812\n'
    )
    found = by_name(read_replicas(mesh.cluster, "linkerd"))
    assert why_wrong(found[silent], RSA.certificate) == (
        "it has signed nothing, and failed 7 times for a reason of its own"
    )
    assert why_wrong(found[busy], RSA.certificate) == why_wrong(found[fresh], RSA.certificate) == ""


@proves("RSA issuer", "`capstan check` names the replica that signs nothing, at versions without the metric, too")
def test_the_check_names_a_replica_that_signs_nothing():
    broken = healthy(replicas=(Replica("identity-1", signed=0, failed=3), Replica("identity-2", signed=9)))
    result = check(broken, "every identity holds the configured issuer in memory")
    assert result.status is Status.ERROR
    assert "identity-1: it has signed nothing since its start, and failed 3 times" in result.message


def test_a_replica_whose_log_may_not_be_read_is_not_waited_for(mesh):
    name = mesh.replica("identity-k", started=f"{utc() - timedelta(hours=1):%FT%TZ}")
    del mesh.logs[name]  # its node knows no such container
    mesh.forgotten.append(name)
    began = mesh.cluster.clock()
    (heard,) = hear(mesh.cluster, view_of(), ISSUER.certificate, utc(), until=began + 60, now=utc)
    assert "cannot read the logs of pods" in heard.problem
    assert mesh.cluster.clock() - began < 30


# --- clocks -----------------------------------------------------------------------------------------------------------


@proves("clock skew", "the replica whose clock is ahead of what it dates its leaves back by is named, with its node")
def test_a_replica_whose_clock_is_ahead_is_refused_before_anything_is_written(mesh):
    right, wrong = mesh.replica("identity-l"), mesh.replica("identity-m")
    mesh.ahead[wrong] = 90
    replicas = read_replicas(mesh.cluster, "linkerd")
    with pytest.raises(GateRefused) as refused:
        require_clocks(replicas, [ISSUER.certificate], 20.0, utc(), "cluster east")
    assert refused.value.what == "the clock of 1 identity replica(s) is wrong"
    assert f"replica {wrong} on node node-1: its clock is " in refused.value.observed
    assert "its leaves begin in the future (dated back by 20 s)" in refused.value.observed
    assert right not in refused.value.observed
    assert "clock of the nodes named" in refused.value.next_command


@proves("clock skew", "a replica whose clock is behind the issuer's beginning would skip it, or end over it: refused")
def test_a_replica_for_whose_clock_the_issuer_has_not_begun_is_refused():
    fresh = make("identity.linkerd.cluster.local", ROOT, start=THEN - timedelta(minutes=6), end=THEN + YEAR)
    behind = Replica("identity-1", node="a", ahead=-timedelta(minutes=10))
    with pytest.raises(GateRefused) as refused:
        require_clocks([behind], [fresh.certificate], 20.0, THEN, "cluster east")
    assert "replica identity-1 on node a: its clock is 600 s behind" in refused.value.observed
    assert "is not valid for it yet" in refused.value.observed
    require_clocks([replace(behind, ahead=-timedelta(minutes=5))], [fresh.certificate], 20.0, THEN, "cluster east")


def test_only_what_is_certain_of_a_clock_is_said():
    at = datetime(2026, 11, 22, 5, 0, 0, 400_000, tzinfo=UTC)
    date = "Sun, 22 Nov 2026 05:00:00 GMT"
    assert clock_difference(date, at, at) == timedelta()
    assert clock_difference(date, at + timedelta(seconds=10), at + timedelta(seconds=11)) < -timedelta(seconds=9)
    assert clock_difference(date, at - timedelta(seconds=30), at - timedelta(seconds=20)) > timedelta(seconds=19)
    assert clock_difference("", at, at) == clock_difference("yesterday", at, at) == timedelta()


# --- what identity would read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "text"),
    [
        pytest.param(secret(ISSUER), "", id="right"),
        pytest.param(secret(P384), "", id="P-384, which the CLI's check refuses and identity signs with"),
        pytest.param(
            secret(RSA), "is RSA 2048; identity loads it and then signs nothing", id="RSA",
            marks=proves("RSA issuer", "refused before identity is made to read it"),
        ),
        pytest.param(
            {**secret(ISSUER), "data": {**secret(ISSUER)["data"], "key.pem": secret(FOREIGN)["data"]["key.pem"]}},
            "key.pem is not the key of the certificate in crt.pem", id="another's key",
            marks=proves("mismatching key pair", "refused before identity is made to read it"),
        ),
        pytest.param(
            {**secret(ISSUER), "data": {"crt.pem": secret(ISSUER)["data"]["crt.pem"]}}, "key.pem", id="no key",
        ),
        pytest.param(secret(ISSUER, scheme=Scheme.KUBERNETES), "crt.pem", id="another scheme's keys"),
    ],
)  # fmt: skip
def test_a_secret_that_nobody_could_sign_with_is_told(item, text):
    faults = signing_faults(item, Scheme.LINKERD)
    assert bool(faults) is bool(text)
    assert all("PRIVATE KEY" not in fault for fault in faults)
    assert text in "; ".join(faults)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (BUNDLE.pem() + "\n\n", "blank line"),
        (BUNDLE.pem() + "\n# the end\n", "text"),
        (BUNDLE.pem() + "\n   ", "space"),
        ("-----BEGIN EC PRIVATE KEY-----\nMAo=\n-----END EC PRIVATE KEY-----\n" + BUNDLE.pem(), "PRIVATE KEY"),
    ],
    ids=["blank line at the end", "comment at the end", "spaces at the end", "a key first"],
)
@proves("crash-loop traps", "roots that are right, in a text over which identity ends: refused before a restart")
def test_a_bundle_text_over_which_identity_would_end_is_refused_before_a_restart(mesh, text, what):
    mesh.trust_roots(text)
    mesh.issuer(ISSUER)
    with pytest.raises(GateRefused) as refused:
        require_readable(mesh.cluster, view_of(), TRUST_ROOTS, ISSUER.certificate.fingerprint, (), THEN)
    assert refused.value.what == "identity would not start again over the text of the trust roots"
    assert "configmap linkerd/linkerd-identity-trust-roots in cluster east" in refused.value.where
    assert "line " in refused.value.observed
    assert "last written by" in refused.value.observed
    assert "kubectl edit configmap linkerd-identity-trust-roots -n linkerd" in refused.value.next_command


@pytest.mark.parametrize(
    ("issuer", "key", "text"),
    [
        pytest.param(RSA, None, "signs nothing", id="RSA"),
        pytest.param(ISSUER, FOREIGN, "is not the key of the certificate", id="another's key"),
        pytest.param(FOREIGN, None, "does not verify against the declared roots", id="chains to nothing"),
        pytest.param(P384, None, "is not the one to sign with", id="a good one that is not ours"),
    ],
)
@proves("foreign writer", "an issuer that somebody else put there stops a restart, and who wrote it is told")
def test_an_issuer_that_somebody_else_put_there_stops_a_restart(mesh, issuer, key, text):
    mesh.trust_roots(BUNDLE.pem())
    mesh.issuer(issuer, key)
    with pytest.raises(IssuerNotTaken) as refused:
        require_readable(mesh.cluster, view_of(issuer), TRUST_ROOTS, ISSUER.certificate.fingerprint, (), THEN)
    assert text in refused.value.observed
    assert "last written by" in refused.value.observed
    assert refused.value.where == "secret linkerd/linkerd-identity-issuer in cluster east"
    assert ISSUER.certificate.fingerprint[:16] in refused.value.expected


def test_what_is_right_may_be_started_on(mesh):
    mesh.trust_roots(BUNDLE.pem())
    mesh.issuer(ISSUER)
    require_readable(mesh.cluster, view_of(), TRUST_ROOTS, ISSUER.certificate.fingerprint, (), THEN)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("Failed to initialize identity service: failed to read CA from disk: tls: key pair", IssuerNotTaken),
        ("Failed to read trust anchors: not a PEM certificate", GateRefused),
    ],
    ids=["over the issuer", "over the roots"],
)
@proves("crash-loop traps", "a replica that ends at its start is named with its last words; nobody waits for it")
def test_a_replica_that_ends_at_its_start_is_named_with_its_last_words(mesh, words, error):
    name = mesh.replica(f"identity-{error.__name__.lower()}")
    mesh.crashes(name, words)
    replicas = read_replicas(mesh.cluster, "linkerd")
    with pytest.raises(GateRefused) as refused:
        require_no_crash(replicas, "cluster east", "linkerd")
    assert type(refused.value) is error
    assert refused.value.observed == f"replica {name} on node node-1: exit code 1: {words}"
    assert refused.value.next_command == f"kubectl logs -n linkerd {name} -c identity --previous"


# --- the gates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
@proves("foreign writer", "an issuer that cannot sign contradicts every phase, whoever trusts it")
def test_an_issuer_that_cannot_sign_contradicts_every_phase(phase):
    fault = "secret linkerd/linkerd-identity-issuer: the issuer's key is RSA 2048"
    state = {Phase.PREPARE: (only(OLD), OLD), Phase.TRUST: (only(OLD), OLD), Phase.ISSUE: (only(OLD, NEW), OLD)}
    trusts, root = state.get(phase, (only(OLD, NEW) if phase is Phase.DISTRUST else only(NEW), NEW))
    good = settled(trusts, root)
    bad = replace(good, signing_faults=(fault,))
    gate = may_enter(phase, observed(bad), only(OLD), NEW, NOW, old_leaf_refused=True)
    assert gate.contradictions == (f"east: {fault}",)
    assert may_enter(phase, observed(good), only(OLD), NEW, NOW, old_leaf_refused=True).contradictions == ()
    assert fault in str(verdict(observed(bad)))
    assert who_would_break(observed(bad), SwitchIssuer("east", only(root))).safe


# --- whose roots the proxy beside it speaks for -----------------------------------------------------------------------

WRITTEN = datetime(2026, 11, 22, 5, tzinfo=UTC)


def replica_pod(
    identity: timedelta, proxy: timedelta, *, restarts: tuple[int, int], born: timedelta = timedelta(days=-1)
) -> dict:
    def entry(name, began, count):
        running = {"running": {"startedAt": f"{WRITTEN + began:%FT%TZ}"}}
        return {"name": name, "restartCount": count, "state": running}

    entries = [entry("identity", identity, restarts[0]), entry("linkerd-proxy", proxy, restarts[1])]
    status = {"containerStatuses": entries, "startTime": f"{WRITTEN + born:%FT%TZ}"}
    return {"metadata": {"name": "x", "namespace": "linkerd"}, "status": status}


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("pod", "apart"),
    [
        pytest.param(replica_pod(-MINUTE, -MINUTE, restarts=(0, 0)), False, id="born together before"),
        pytest.param(replica_pod(-MINUTE, MINUTE, restarts=(0, 0)), False, id="born with their pod, one late"),
        pytest.param(replica_pod(-MINUTE, MINUTE, restarts=(0, 1)), True, id="the proxy alone was started again"),
        pytest.param(replica_pod(MINUTE, -MINUTE, restarts=(1, 0)), True, id="identity alone was started again"),
        pytest.param(replica_pod(-MINUTE, -2 * MINUTE, restarts=(1, 0)), False, id="again, but both before"),
        pytest.param(
            replica_pod(60 * MINUTE, MINUTE / 2, restarts=(1, 0), born=MINUTE / 3),
            False,
            id="again, in a pod born after",
        ),
        pytest.param(
            replica_pod(KUBELET_DELAY + MINUTE, KUBELET_DELAY + 2 * MINUTE, restarts=(1, 1)),
            False,
            id="both long after",
        ),
    ],
)
@proves("replicas out of step", "where identity or its proxy was started again alone, the proxy speaks for itself only")
def test_a_proxy_speaks_for_its_identity_only_where_both_read_the_same_text(pod, apart):
    assert bool(why_apart(pod, WRITTEN)) is apart
    assert why_apart(pod, None) == ""


@proves("replicas out of step", "no issuer is written while what one replica has in memory is not known")
def test_an_issuer_is_not_written_while_a_replicas_roots_are_unknown():
    from capstan.systems.base import IssuerMaterial

    evidence = healthy()
    why = "its identity process began at ..., its proxy at ...: identity may hold other roots than its proxy says"
    proxies = tuple(
        replace(proxy, component="identity", apart=why if proxy.peer.pod.endswith("-2") else "")
        if "identity" in proxy.peer.pod
        else proxy
        for proxy in evidence.view.proxies
    )
    view = with_view(evidence, proxies=proxies).view
    material = IssuerMaterial((ISSUER.certificate,), ISSUER.key)
    with pytest.raises(GateRefused) as refused:
        require_trusted_by_all(view, material, THEN, "secret linkerd/linkerd-identity-issuer")
    assert refused.value.observed == f"east/linkerd/linkerd-identity-2: {why}"


# --- what the API server knows of a write -----------------------------------------------------------------------------


def test_who_wrote_last_and_when_is_taken_from_the_managed_fields(mesh):
    item = mesh.issuer(ISSUER)
    assert abs(written_at(item) - utc()) < timedelta(seconds=10)
    assert writer_of(item).startswith("last written by ")
    assert written_at({"metadata": {}}) is None
    assert writer_of({"metadata": {}}) == ""


@pytest.mark.parametrize(("port", "name"), [(9990, "ident-admin"), (9991, "admin-http"), (9990, "")])
def test_the_admin_port_is_found_by_its_name_of_either_age(port, name):
    ports = [{"containerPort": 8080, "name": "grpc"}] + ([{"containerPort": port, "name": name}] if name else [])
    assert admin_port({"spec": {"containers": [{"name": "identity", "ports": ports}]}}) == port


def test_a_bundle_of_other_roots_is_not_started_on(mesh):
    mesh.trust_roots(BUNDLE.pem())
    mesh.issuer(ISSUER)
    other = Bundle.of(OTHER.certificate).fingerprints
    with pytest.raises(GateRefused, match="are not the ones to restart for"):
        require_readable(mesh.cluster, view_of(), other, None, (), THEN)
