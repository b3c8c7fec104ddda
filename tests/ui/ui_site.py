"""The static site in a browser, opened as files: pages, navigation, search, phone width, dark and light, contrast."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import DESK, PHONE, ROOT, SHOTS

BUILT = ROOT / "build" / "html"
CHAPTERS = sorted(BUILT.glob("rendered/*/*.html"))
PAGES = [*CHAPTERS, BUILT / "explore.html", BUILT / "sweep.html"]  # in the order of reading
FRONT = BUILT / "index.html"
LIMIT_BYTES = 10 * 2**20


@pytest.fixture
def watched(page: Page):
    """The page, which fails the test where a script fails or anything is asked of the network."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: wrong.append(f"not found: {request.url}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(f"network: {r.url}"))
    yield page
    assert not wrong


def chapter(number: str) -> str:
    """The address of a chapter, by its two digits."""
    return next(file for file in CHAPTERS if file.name.startswith(number)).as_uri()


def test_the_site_has_every_chapter_and_is_small():
    sources = sorted(file.stem for file in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert [file.stem for file in CHAPTERS] == sources, "`make html` makes the site first"
    assert sum(file.stat().st_size for file in BUILT.rglob("*") if file.is_file()) < LIMIT_BYTES


@pytest.mark.parametrize("file", [FRONT, *PAGES], ids=lambda file: file.stem)
def test_a_page(watched: Page, serious, file: Path):
    watched.goto(file.as_uri())
    for image in watched.locator("article img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth") > 0
        assert image.get_attribute("alt")
    for scheme in ("light", "dark"):
        watched.emulate_media(color_scheme=scheme)
        assert serious(watched) == []
    watched.emulate_media(color_scheme="light")
    watched.screenshot(path=SHOTS / f"site_{file.stem}.png", full_page=True)


@pytest.mark.parametrize("file", [FRONT, *PAGES], ids=lambda file: file.stem)
def test_a_page_on_a_phone(watched: Page, serious, file: Path):
    watched.set_viewport_size(PHONE)
    watched.goto(file.as_uri())
    wide = watched.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"], "the page scrolls sideways"
    assert serious(watched) == []
    watched.screenshot(path=SHOTS / f"phone_{file.stem}.png", full_page=True)


def test_navigation_leads_through_all_pages(watched: Page):
    watched.set_viewport_size(DESK)
    watched.goto(FRONT.as_uri())
    seen = []
    for _ in PAGES:
        watched.locator("a.next-page").click()
        watched.wait_for_load_state()
        seen.append(Path(watched.url).stem)
    assert seen == [file.stem for file in PAGES]
    watched.locator(".sidebar-tree a", has_text="Threads").first.click()
    expect(watched.get_by_role("heading", level=1)).to_contain_text("Threads")


def test_search_finds_a_word_from_a_file(watched: Page):
    watched.goto(FRONT.as_uri())
    watched.locator("input[name=q]").first.fill("wavefront")
    watched.locator("input[name=q]").first.press("Enter")
    found = watched.locator("ul.search li a")
    found.first.wait_for()
    assert any("03_threads" in (link.get_attribute("href") or "") for link in found.all())
    watched.screenshot(path=SHOTS / "site_search.png")
    found.first.click()
    expect(watched.get_by_role("heading", level=1)).to_be_visible()


def test_dark_and_light_by_the_button(watched: Page):
    watched.emulate_media(color_scheme="light")
    watched.goto(chapter("03"))
    background = "getComputedStyle(document.body).backgroundColor"
    light = watched.evaluate(background)
    button = watched.locator("button.theme-toggle:visible").first
    colours = set()
    for _ in range(3):
        button.click()
        colours.add(watched.evaluate(background))
    assert len(colours | {light}) == 2
    while watched.evaluate("document.body.dataset.theme") != "dark":
        button.click()
    watched.screenshot(path=SHOTS / "site_dark.png")


def test_the_contrast_check_would_find_a_fault(page: Page, serious):
    page.set_content(
        "<html lang=en><title>t</title><main><h1>x</h1><p style='color:#ccc;background:#fff'>faint</p></main>"
    )
    assert any("color-contrast" in fault for fault in serious(page))
