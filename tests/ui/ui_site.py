"""The static site in a browser, opened as files: pages, navigation, search, phone width, dark and light, contrast."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from rnnpar.study import site
from tests.ui.conftest import DESK, PHONE, ROOT, SHOTS

BUILT = ROOT / "build" / "html"
PAGES = [page.name for page in site.pages()]


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


def address(name: str) -> str:
    assert (BUILT / f"{name}.html").exists(), "`make html` makes the site first"
    return (BUILT / f"{name}.html").as_uri()


def test_nothing_is_out_of_order():
    assert list(site.faults(BUILT)) == []


@pytest.mark.parametrize("name", ["index", *PAGES])
def test_a_page(watched: Page, serious, name: str):
    watched.goto(address(name))
    for image in watched.locator("article img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth") > 0
        assert image.get_attribute("alt")
    for scheme in ("light", "dark"):
        watched.emulate_media(color_scheme=scheme)
        assert serious(watched) == []
    watched.emulate_media(color_scheme="light")
    watched.screenshot(path=SHOTS / f"site_{name}.png", full_page=True)


@pytest.mark.parametrize("name", ["index", *PAGES])
def test_a_page_on_a_phone(watched: Page, serious, name: str):
    watched.set_viewport_size(PHONE)
    watched.goto(address(name))
    wide = watched.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"], "the page scrolls sideways"
    assert serious(watched) == []
    watched.screenshot(path=SHOTS / f"phone_{name}.png", full_page=True)


def test_navigation_leads_through_all_pages(watched: Page):
    watched.set_viewport_size(DESK)
    watched.goto(address("index"))
    seen = []
    for _ in PAGES:
        watched.locator("a.next-page").click()
        watched.wait_for_load_state()
        seen.append(Path(watched.url).stem)
    assert seen == PAGES
    watched.locator(".sidebar-tree a", has_text="Threads").first.click()
    expect(watched.get_by_role("heading", level=1)).to_contain_text("Threads")


def test_search_finds_a_word_from_a_file(watched: Page):
    watched.goto(address("index"))
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
    watched.goto(address("03_threads"))
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
