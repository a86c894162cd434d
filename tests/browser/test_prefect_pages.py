"""What people see and do in Prefect's own pages, in a real browser: launch, read, decide, look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import PrefectPages, requests_to, visible_height
from tests.deployed.meshes import Mesh, wait_for
from tests.support.labs import RunningLab, start_lab
from tests.support.prefect_deployment import Deployed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("browser")]

LEAF_SECONDS = 40
PEOPLE = [("trust", "Ada Lovelace"), ("issue", "Grace Hopper"), ("distrust", "Ada Lovelace")]
FATAL = ("Failed", "Crashed", "Cancelled")


@pytest.fixture(scope="module")
def lab(chromium: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    options = ["--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "20"]
    running = start_lab(tmp_path_factory.mktemp("lab"), *options, program=("infra.lab",))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def deployed(lab: RunningLab, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    environment = {"CAPSTAN_HOME": str(home), "CAPSTAN_HANDSHAKES_URL": f"{lab.facts['control']}/prober"}
    with Deployed(tmp_path_factory.mktemp("prefect"), environment=environment, ui=True) as running:
        yield running


@pytest.fixture
def asking(deployed: Deployed, home: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A run that is suspended for an answer, and the file it writes the answer to."""
    diary = home / f"{request.node.name}.txt"
    deployment = deployed.deploy("tests.browser.asking_flow.asks", "asks")
    run = deployed.launch(deployment, {"diary": str(diary)})
    deployed.wait_for_state(run, "Suspended", seconds=180, fatal=FATAL)
    return run, diary


def test_the_whole_preview_can_be_read_in_the_dialog_before_deciding(
    asking: tuple[str, Path], pages: PrefectPages
) -> None:
    pages.open_run(asking[0])
    decision = pages.resume().field("Decision")
    for said in (
        "begin phase trust of rotation",
        "What changes",
        "what this step changes",
        "the last line of the page",
    ):
        line = decision.get_by_text(said).last
        expect(line).to_be_visible()
        assert visible_height(line) > 10, said
    # A list is a list, and not one paragraph: the page takes single line feeds out of descriptions.
    expect(decision.get_by_role("listitem")).to_have_count(15)
    # What only programs read is not in the way of people.
    expect(decision.get_by_text("programs read this")).to_have_count(0)


def test_a_form_that_is_not_filled_in_says_so_and_sends_nothing(
    deployed: Deployed, asking: tuple[str, Path], pages: PrefectPages
) -> None:
    run, diary = asking
    pages.open_run(run)
    sent = requests_to(pages.page, "/resume")
    dialog = pages.resume()
    missing = dialog.submit_in_vain("is a required property")
    assert missing == ["'decision' is a required property", "'name' is a required property"]
    assert not sent
    assert deployed.state(run) == "Suspended"
    # Filled in after all, the same dialog goes through.
    dialog.choose("Decision", "reject")
    dialog.fill("Your name", "Ada Lovelace")
    dialog.fill("Ticket", "CHG-4711")
    dialog.fill("Comment", "not in the week of the fair")
    assert dialog.send()["status"] == "ACCEPT"
    deployed.wait_for_state(run, "Completed", seconds=180, fatal=FATAL)
    assert diary.read_text() == "rejected by Ada Lovelace, CHG-4711: not in the week of the fair"


def test_an_answer_to_another_request_is_refused_and_the_page_says_why(
    deployed: Deployed, asking: tuple[str, Path], pages: PrefectPages
) -> None:
    run, diary = asking
    pages.open_run(run)
    dialog = pages.resume()
    dialog.choose("Decision", "approve")
    dialog.fill("Your name", "Ada Lovelace")
    dialog.fill("Request", "request-0")
    # By the page's own check of the form, or by the server's answer: which comes first depends on how busy it is.
    assert dialog.submit_in_vain("does not match")
    assert deployed.state(run) == "Suspended"
    assert not diary.exists()


@pytest.fixture
def mesh(lab: RunningLab, home: Path) -> Mesh:
    fresh = Mesh(lab, home)
    fresh.forget_earlier()
    return fresh


@pytest.fixture
def deployment(deployed: Deployed, mesh: Mesh) -> str:
    return deployed.deploy(
        "flows.linkerd.rotate_trust_anchor", "mesh", parameters={"domain": mesh.parameter()},
        tags=["capstan", "domain:mesh", "system:linkerd"],
    )  # fmt: skip


# The browser comes last: inside it runs an event loop, in which Prefect's client would answer with coroutines.
def test_a_rotation_is_launched_approved_and_followed_in_the_browser_alone(
    mesh: Mesh, deployment: str, deployed: Deployed, pages: PrefectPages
) -> None:
    # 1. Launched by the form of the deployment's page.
    run = pages.run_deployment(deployment, rotation="by-hand")
    # 2. Every approval is given on the run's page, after reading what it is for.
    for phase, who in PEOPLE:
        deployed.wait_for_state(run, "Suspended", seconds=300, fatal=(*FATAL, "Completed"))
        pages.open_run(run)
        pages.expect_state("Suspended")
        dialog = pages.resume()
        expect(dialog.field("Decision").get_by_text(f"begin phase {phase} of rotation")).to_be_visible()
        dialog.choose("Decision", "approve")
        dialog.fill("Your name", who)
        dialog.fill("Ticket", "CHG-4711")
        assert dialog.send()["status"] == "ACCEPT"
        wait_for(lambda: deployed.state(run) != "Suspended", "the run to go on")
    # 3. It ends as any rotation: one new root, nobody lost a connection, exactly these approvals.
    deployed.wait_for_state(run, "Completed", seconds=300, fatal=FATAL)
    mesh.require_finished(PEOPLE)
    # 4. The run says what it was, and its page shows plan, account and timeline.
    pages.open_run(run)
    expect(pages.page.get_by_text("mesh: completed (by-hand)").first).to_be_visible()
    cards = "\n".join(pages.artifacts(run))
    for said in ("capstan-mesh-plan", "capstan-mesh-evidence", "capstan-mesh-timeline", "restart workloads (cluster)"):
        assert said in cards, cards
    pages.open_artifact("capstan-mesh-timeline")
    picture = pages.page.get_by_role("img", name="timeline")
    expect(picture).to_be_visible()
    width, wanted = picture.evaluate("image => [image.naturalWidth, image.clientWidth]")
    assert width == 900, "the browser cannot draw it"
    assert wanted > 500, "it is too small to read"
