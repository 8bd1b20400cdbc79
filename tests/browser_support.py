"""A real Chromium for the tests of the listening page: pages that notice script errors and strangers, and pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from app_support import BROWSER_ARGUMENTS, CONSENT

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PATIENCE_MS = 60_000  # on a busy machine; nothing waits longer than it must
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1180, "height": 960}
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"


@contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """Debian's Chromium without a window. Skips where it is missing, but fails where CI is set."""
    if not Path(CHROMIUM).exists():
        message = f"{CHROMIUM} is not there; `make system` installs Debian's chromium."
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visitor(browser: sync_api.Browser, address: str, **options: object) -> Iterator[sync_api.BrowserContext]:
    """A browser profile of its own, on a small phone unless told otherwise. On leaving, the test fails on script errors
    and on every request that went to another host."""
    context = browser.new_context(base_url=address, **{"viewport": PHONE, **options})
    context.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    own = (address, "data:", "blob:")
    context.on("weberror", lambda error: faults.append(f"script error: {error.error}"))
    context.on("request", lambda request: request.url.startswith(own) or faults.append(f"outside: {request.url}"))
    try:
        yield context
        assert not faults, faults
    finally:
        context.close()


def start(page: sync_api.Page, path: str = "/", *, phase: str = "rate") -> None:
    """Opens the study with a session that has been begun already, and waits for the first thing to do."""
    about = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
    answer = page.request.post("/rate/session", data={**CONSENT, **about})
    assert answer.ok, answer.text()
    page.goto(path)
    page.wait_for_selector(f'#attune[data-phase="{phase}"]')


def pair_id(page: sync_api.Page) -> str:
    return page.evaluate("window.attune.pairs.pair?.info.id")


def wait_for_another_pair(page: sync_api.Page, than: str) -> None:
    page.wait_for_function(
        "than => window.attune.pairs.pair && window.attune.pairs.pair.info.id !== than && "
        "window.attune.root.dataset.phase === 'rate'",
        arg=than,
    )


def hear_both(page: sync_api.Page) -> None:
    """Plays, switches sides once the first is heard, and pauses when the vote is unlocked."""
    page.keyboard.press("Space")
    for _ in range(2):
        side = page.get_attribute("#attune", "data-side")
        page.wait_for_function("side => window.attune.pairs.missingSeconds(side) === 0", arg=side)
        switch_side(page)
    page.wait_for_selector('#attune[data-unlocked="true"]')
    page.keyboard.press("Space")
    page.wait_for_selector('#attune[data-playing="false"]')


def switch_side(page: sync_api.Page) -> None:
    page.keyboard.press("2" if page.get_attribute("#attune", "data-side") == "left" else "1")


def answer(page: sync_api.Page, letter: str) -> None:
    """Everything that a vote needs, up to the enabled button."""
    page.keyboard.press(letter)
    for name in ("text_adherence", "quality"):
        page.click(f'label:has(input[name="{name}"][value="1"])')
    page.wait_for_selector('[data-at="submit"]:enabled')


def wait_until_saved(page: sync_api.Page) -> None:
    page.wait_for_function("window.attune.outbox.empty")


def rate(page: sync_api.Page, letter: str) -> str:
    """Hears, answers and votes; the id of the pair that was voted on."""
    voted = pair_id(page)
    hear_both(page)
    answer(page, letter)
    page.keyboard.press("Enter")
    return voted


def serious_faults(page: sync_api.Page) -> list[str]:
    """What axe-core finds serious or critical on the page as it is now, one line each."""
    source = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate("async () => (await axe.run(document)).violations")
    return [
        f"{fault['impact']}: {fault['id']}: {node['html'][:160]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def beyond_the_edge(page: sync_api.Page) -> list[str]:
    """Texts and controls that reach over the right edge of the window. An ancestor that cuts off what is too wide
    keeps the document as narrow as its window, so its width alone tells nothing."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#attune :is(form, fieldset, p, h1, button, label, textarea)")]
          .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1)
          .map((one) => `${one.tagName}.${one.className}: ${Math.round(one.getBoundingClientRect().right)}`)"""
    )


def picture(page: sync_api.Page, name: str) -> None:
    """Keeps what the page looks like as docs/pictures/NAME.png, when ATTUNE_PICTURES is set."""
    if os.environ.get("ATTUNE_PICTURES"):
        folder = Path(os.environ.get("ATTUNE_PICTURES_TO") or PICTURES)
        page.screenshot(path=folder / f"{name}.png", full_page=True, animations="disabled")
