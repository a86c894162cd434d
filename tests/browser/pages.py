"""Prefect's pages as a person uses them, in a real browser: by roles, labels and texts, never by the page's own API.

The pages are those of Prefect 3.8.8. A click into one of its lists opens and closes it at once; its arrows, or the
space bar, open it. The driver clicks the arrows, as docs/ui.md tells people to.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as NothingHappened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from playwright.sync_api import Locator

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# A laptop's window. Larger ones hide what does not fit into small ones.
WINDOW = (1280, 720)
TRIES = 4
PATIENCE = 60_000.0  # milliseconds; the machine is shared with a server, a worker, and a lab


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a Chromium of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
            page.set_default_timeout(PATIENCE)
            page.set_default_navigation_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            yield page
        finally:
            browser.close()


class ResumeDialog:
    """The dialog behind the button Resume of a suspended run."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.box = page.get_by_role("dialog")

    def field(self, title: str) -> Locator:
        """The field with this title: its description, its control, and what is wrong with it."""
        return self.box.locator(".schema-form-property").filter(
            has=self._page.locator("label", has_text=title)
        )  # fmt: skip

    def choose(self, title: str, option: str) -> None:
        """Pick an option of a list."""
        field = self.field(title)
        field.locator(".p-select-button__icon").click()
        self._page.get_by_role("option", name=option, exact=True).click()
        expect(field.get_by_role("button", name=option, exact=True)).to_be_visible()

    def fill(self, title: str, text: str) -> None:
        """Type into a field."""
        self.field(title).get_by_role("textbox").fill(text)

    def submit(self) -> None:
        """Click Submit."""
        self.box.get_by_role("button", name="Submit").click()

    def submit_in_vain(self, complaint: str) -> list[str]:
        """Click Submit until the page says this, beside a field or in a message of its own; every such text.

        The page has the server check the form first. While the server is busy that fails without a word, and a person
        clicks again.
        """
        found = self._page.get_by_text(complaint)
        for _ in range(TRIES):
            self.submit()
            with suppress(AssertionError):
                expect(found.first).to_be_visible(timeout=PATIENCE / TRIES)
                return found.all_inner_texts()
        raise AssertionError(f"the dialog never said {complaint!r}:\n{self.box.inner_text()}")

    def send(self) -> dict[str, Any]:
        """Click Submit until the answer is sent; what the server says to it."""
        for _ in range(TRIES):
            try:
                with self._page.expect_response("**/resume", timeout=PATIENCE / TRIES) as reply:
                    self.submit()
            except NothingHappened:
                continue
            if reply.value.ok:
                said: dict[str, Any] = reply.value.json()
                return said
        raise AssertionError(f"the answer was not sent:\n{self.box.inner_text()}")


class PrefectPages:
    """The pages of one server."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url

    def open_run(self, run: str) -> None:
        """The page of a flow run."""
        self.page.goto(f"{self._url}/runs/flow-run/{run}")

    def heading(self) -> str:
        """The run's name, as its page shows it."""
        crumbs = self.page.locator(".page-heading, .p-bread-crumbs").first
        expect(crumbs).to_contain_text(" ")
        return crumbs.inner_text()

    def expect_state(self, name: str) -> None:
        """Wait until the page of the run shows the state."""
        expect(self.page.locator(".state-badge").first).to_have_text(name)

    def resume(self) -> ResumeDialog:
        """Click Resume on the page of a suspended run."""
        self.page.get_by_role("button", name="Resume", exact=True).click()
        dialog = ResumeDialog(self.page)
        expect(dialog.box.get_by_role("button", name="Submit")).to_be_visible()
        return dialog

    def run_deployment(self, deployment: str, *, rotation: str) -> str:
        """Launch a run by the form of the deployment's page, with the parameter `rotation` typed in; the run's id."""
        self.page.goto(f"{self._url}/deployments/deployment/{deployment}")
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run", exact=True).click()
        field = self.page.locator(".schema-form-property").filter(
            has=self.page.locator("label").get_by_text("rotation (Optional)", exact=True)
        )
        field.get_by_role("button", name="str", exact=True).click()
        field.get_by_role("textbox").fill(rotation)
        for _ in range(5):
            # The server answers 503 while its database is busy, and the page then asks for another try.
            with self.page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as made:
                self.page.get_by_role("button", name="Submit").click()
            if made.value.ok:
                return str(made.value.json()["id"])
        raise AssertionError(f"the form was not accepted: HTTP {made.value.status}")

    def artifacts(self, run: str) -> list[str]:
        """Keys and texts on the cards of the run's artifacts."""
        self.page.goto(f"{self._url}/runs/flow-run/{run}?tab=Artifacts")
        self.page.get_by_role("tab", name="Artifacts").or_(self.page.get_by_text("Artifacts", exact=True)).first.click()
        cards = self.page.locator(".artifact-card")
        expect(cards.first).to_be_visible()
        return cards.all_inner_texts()

    def open_artifact(self, key: str) -> None:
        """Click a card of the run's artifacts."""
        self.page.get_by_role("link").filter(has_text=key).first.click()
        self.page.wait_for_url("**/artifacts/**")


def visible_height(element: Locator) -> float:
    """Pixels of an element that its scrolling parents do not cut off when it is scrolled into view."""
    element.scroll_into_view_if_needed()
    height: float = element.evaluate(
        """e => { let top = -1e9, bottom = 1e9;
            for (let p = e.parentElement; p; p = p.parentElement) {
                if (getComputedStyle(p).overflowY !== 'visible') {
                    const r = p.getBoundingClientRect();
                    top = Math.max(top, r.top); bottom = Math.min(bottom, r.bottom);
                } }
            const r = e.getBoundingClientRect();
            return Math.max(0, Math.min(r.bottom, bottom) - Math.max(r.top, top)); }"""
    )
    return height


def requests_to(page: Page, path: str) -> Sequence[str]:
    """Addresses of requests that end with this path, from now on: a list that grows."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url) if request.url.endswith(path) else None)
    return seen
