"""JupyterLab as a reader uses it: run all of chapter 00, play with explore, stop a run; and what `make lab` opens."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

from rnnpar import registry
from tests.ui.conftest import ROOT, SHOTS, Lab, lab_environment

ALL_MS = 100_000


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    page.goto(lab.at(f"notebooks/{name}"), wait_until="domcontentloaded")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=60_000)
    # No dialogue may hide the page: a kernel that is not there would ask for one.
    expect(page.locator(".jp-Dialog")).to_have_count(0)


def run_all(page: Page) -> None:
    for _ in range(4):
        page.wait_for_timeout(1500)  # while plugins still load, the menu's items move away under the pointer
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.wait_for_timeout(500)
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(1500)
        if any(re.search(r"\[(\*|\d+)\]", text) for text in counts(page)):
            return
        page.screenshot(path=SHOTS / "lab_missed.png")
        for dialog in page.locator(".jp-Dialog .jp-mod-reject").all():
            dialog.click()
    raise AssertionError("Run All Cells does nothing; see lab_missed.png")


def counts(page: Page) -> list[str]:
    """What stands before each code cell: "[3]:" when it has run, "[*]:" while it waits."""
    return page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()


def ran(page: Page) -> bool:
    """Whether every code cell has run."""
    return all(re.search(r"\[\d+\]", text) for text in counts(page))


def test_all_of_chapter_00_runs(page: Page, lab: Lab):
    open_notebook(page, lab, "00_start_here.ipynb")
    run_all(page)
    end = time.monotonic() + ALL_MS / 1000
    while not ran(page) and time.monotonic() < end:
        page.wait_for_timeout(200)
    page.screenshot(path=SHOTS / "lab_00_ran.png")
    assert ran(page), counts(page)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    expect(page.get_by_text("relative error:").last).to_be_visible()
    picture = page.locator(".jp-OutputArea-output img").last
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.naturalWidth") > 500
    page.screenshot(path=SHOTS / "lab_00.png")


@pytest.fixture
def explore(page: Page, lab: Lab) -> Page:
    page.set_viewport_size({"width": 1280, "height": 1500})
    open_notebook(page, lab, "explore.ipynb")
    run_all(page)
    page.locator("img[alt^='Time of a step']").wait_for(timeout=60_000)
    return page


def drag(page: Page, name: str, keys: str, times: int) -> None:
    """Move a slider by its keyboard, as a reader may."""
    handle = page.locator(".widget-hslider", has_text=name).locator(".noUi-handle")
    handle.focus()
    for _ in range(times):
        handle.press(keys)


def source(page: Page) -> str:
    return page.locator("img[alt^='Time of a step']").get_attribute("src")


def test_explore_answers_a_slider_and_measures(explore: Page):
    expect(explore.get_by_role("status")).to_have_text("measured", timeout=ALL_MS)
    expect(explore.locator("img[alt^='What each thread did']")).to_be_visible()
    expect(explore.get_by_text("times as fast as")).to_be_visible()
    explore.screenshot(path=SHOTS / "lab_explore_measured.png")
    before = source(explore)
    took = explore.evaluate(
        """async () => {
            const picture = () => document.querySelector("img[alt^='Time of a step']").src;
            const rows = [...document.querySelectorAll('.widget-hslider')];
            const row = rows.find(e => e.innerText.includes('hidden size H'));
            const handle = row.querySelector('.noUi-handle'), old = picture(), begin = performance.now();
            handle.focus();
            handle.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
            while (picture() === old && performance.now() - begin < 10000) await new Promise(r => setTimeout(r, 5));
            return performance.now() - begin;
        }"""
    )
    print(f"a slider's answer after {took:.0f} ms")
    (SHOTS / "slider_ms.json").write_text(json.dumps(took))
    assert source(explore) != before
    assert took < 2_000  # 300 on a quiet machine; this one may be busy
    expect(explore.get_by_text("hidden size H").first).to_be_visible()


def test_explore_offers_all_methods_and_says_why_not(explore: Page):
    expect(explore.get_by_role("status")).to_have_text("measured", timeout=ALL_MS)
    menu = explore.locator(".widget-dropdown", has_text="method").locator("select")
    offered = set(menu.locator("option").all_inner_texts())
    methods = [method for method in registry.methods() if method.backend != "peers"]
    assert offered == {method.name for method in methods if method.available}
    missing = [method for method in methods if not method.available]
    if missing:
        explore.get_by_text(f"{len(missing)} methods do not run here").click()
        expect(explore.get_by_text(missing[0].why_not)).to_be_visible()
    menu.select_option("in_time/segments")
    expect(explore.get_by_text("in_time/segments is ")).to_be_visible(timeout=ALL_MS)
    explore.screenshot(path=SHOTS / "lab_explore_methods.png")


def test_explore_stops_a_run(explore: Page):
    stop = explore.locator("button.jupyter-button", has_text="Stop")
    expect(explore.get_by_role("status")).to_have_text("measured", timeout=ALL_MS)
    expect(stop).to_be_disabled()
    drag(explore, "hidden size H", "ArrowRight", 6)
    drag(explore, "time steps T", "ArrowRight", 3)
    drag(explore, "sequences B", "ArrowRight", 5)
    expect(explore.locator("img[alt*='T = 1,024, B = 32']")).to_be_visible(timeout=20_000)  # the last move has arrived
    explore.locator("button.jupyter-button", has_text="Measure").click()
    expect(stop).to_be_enabled()
    explore.screenshot(path=SHOTS / "lab_explore_running.png")
    stop.click()
    expect(explore.get_by_role("status")).to_have_text("stopped", timeout=5_000)
    expect(stop).to_be_disabled()
    workers = [p for p in psutil.process_iter(["cmdline"]) if "rnnpar.study.live" in (p.info["cmdline"] or [])]
    time.sleep(2)  # what a new process imports
    assert all(p.cpu_percent(1.0) < 50 for p in workers if p.is_running())


def test_explore_says_what_it_does_not_understand_and_advises(explore: Page):
    text = explore.locator("textarea").last
    text.fill("H = many")
    expect(explore.get_by_text("Not understood")).to_be_visible()
    text.fill("hidden_size=512, batch=8, T=100")
    expect(explore.get_by_text("rnnpar.prepare(net,").last).to_be_visible()
    explore.get_by_text("Paste your sizes").last.scroll_into_view_if_needed()
    explore.screenshot(path=SHOTS / "lab_explore_advice.png")


def test_make_lab_opens_00_with_this_environments_kernel(page: Page, tmp_path: Path):
    home = tmp_path / "home"
    decoy = home / ".local/share/jupyter/kernels/python3"  # a kernel of the user's own, of the same name
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text(json.dumps(dict(argv=["/bin/false"], display_name="Decoy", language="python")))
    options = "LAB_OPTIONS=--no-browser --port=0" + (" --allow-root" if hasattr(os, "geteuid") else "")
    environment = lab_environment(home) | {"VIRTUAL_ENV": sys.prefix}
    server = Lab(["make", "lab", options], ROOT, environment)
    try:
        (opens,) = (home / ".local/share/jupyter/runtime").glob("jpserver-file-to-run-*-open.html")
        page.goto(opens.as_uri())  # what `make lab` hands to the user's browser
        page.wait_for_url("**/lab/tree/**00_start_here.ipynb*")
        page.get_by_role("tab", name="00_start_here.ipynb").wait_for(timeout=60_000)
        expect(page.get_by_role("heading", name="where is the parallelism")).to_be_visible()
        end = time.monotonic() + 60
        while not (kernels := kernels_below(server.process.pid)) and time.monotonic() < end:
            time.sleep(0.2)
        assert kernels, "no kernel was started"
        assert os.path.samefile(os.path.dirname(kernels[0][0]), Path(sys.executable).parent)
    finally:
        server.close()


def kernels_below(pid: int) -> list[list[str]]:
    found = [child.cmdline() for child in psutil.Process(pid).children(recursive=True) if child.is_running()]
    return [line for line in found if any("ipykernel" in word for word in line)]
