"""What the browser tests share: a headless Chromium, and JupyterLab on a copy of the notebooks.

These tests have names of their own (ui_*.py), so that `make test` needs no browser; `make test-ui` runs them. Without a
browser they fail and say what would do. Screenshots go to build/ui, to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "ui"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
START_S = 60


def chromium() -> str:
    """The browser to drive: RNNPAR_CHROMIUM, or the first of NAMES that is installed."""
    named = os.environ.get("RNNPAR_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        looked = named or ", ".join(NAMES)
        pytest.exit(
            f"no browser: looked for {looked}. `make test-ui` needs Chromium or Chrome; on Debian or Ubuntu "
            "`apt-get install chromium`, or name one: RNNPAR_CHROMIUM=/path/to/chrome make test-ui",
            returncode=1,
        )
    return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport=DESK)
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def serious() -> Callable[[Page], list[str]]:
    """What axe-core finds on a page that is serious or critical, a line each."""

    def look(page: Page) -> list[str]:
        violations = Axe().run(page, options={"preload": False}).response["violations"]  # a file may fetch nothing
        return [
            f"{fault['impact']} {fault['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
            for fault in violations
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"][:5]
        ]

    return look


class Lab:
    """A JupyterLab that runs: `url` with its token, `folder` that it serves, `process`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.lines:
                if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/\S*token=\w+", line):
                    self.url = found[0].replace("localhost", "127.0.0.1")
                    return
            time.sleep(0.1)
        self.close()
        raise RuntimeError("JupyterLab did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def at(self, path: str) -> str:
        """The address of a notebook."""
        base, token = re.match(r"(http://[^/]+)/.*token=(\w+)", self.url).groups()
        return f"{base}/lab/tree/{path}?token={token}&reset"

    def close(self) -> None:
        import psutil

        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in family:
            if child.is_running():
                child.kill()


def lab_environment(home: Path) -> dict[str, str]:
    """The environment of a user who has nothing of his own: an empty home."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "IPYTHON"))}
    return kept | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a copy of notebooks/: what it saves must not change the sources."""
    place = tmp_path_factory.mktemp("lab")
    folder = place / "checkout"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    options = ["--no-browser", "--port=0", "--allow-root"] if hasattr(os, "geteuid") else ["--no-browser", "--port=0"]
    settings = place / "home/.jupyter/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # keep cells that are out of sight, so that tests can see them
    environment = lab_environment(place / "home") | {"RNNPAR_FIGURES": str(place / "figures")}
    server = Lab([sys.executable, "-m", "jupyterlab", *options], folder, environment)
    yield server
    server.close()
