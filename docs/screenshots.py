"""Takes the screenshots of the page that the documents show, wide and narrow, light and dark: python docs/screenshots.py

Needs Chromium, the packages of the extra `dev`, and the base language model that `make demo` fetches.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import PIL.Image
from playwright.sync_api import Page, sync_playwright

from rebus.apps.web.models import Models
from rebus.apps.web.page import build_page, launch

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SHOTS = ((1440, 900, "light"), (1440, 900, "dark"), (390, 844, "light"), (390, 844, "dark"))
PATIENCE = 600_000
"""Milliseconds that a reply may take."""


def turns(page: Page, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#past .turn').length == {count}")
    page.wait_for_function("document.querySelector('#pending .turn') === null")


def chat(page: Page) -> None:
    """Asks about a picture, has one drawn and chooses it."""
    page.get_by_role("button", name="What is in this picture?").click()
    turns(page, 1)
    page.locator("#modality").get_by_text("Picture").click()
    page.fill("#message textarea", "Draw a red car.")
    page.press("#message textarea", "Enter")
    turns(page, 2)
    page.locator("button.picture").last.click()
    page.wait_for_selector(".chosen")
    page.wait_for_timeout(500)


def inspect(page: Page) -> None:
    """Changes one code of a picture."""
    page.get_by_role("tab", name="Inspector").click()
    page.set_input_files("#picture input[type=file]", str(ROOT / "examples" / "red-apple-noto.png"))
    page.wait_for_selector("text=Drawn from its codes")
    page.locator("#chips label").nth(5).click()
    page.wait_for_selector("text=Code 6 of 32")
    page.locator("#code input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_selector("text=With 1 code changed")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait_for_timeout(500)


def save(page: Page, name: str, *, whole: bool = False) -> None:
    """A screenshot with few colours, so that the repository stays small."""
    with tempfile.TemporaryDirectory() as folder:
        page.screenshot(path=Path(folder) / "shot.png", full_page=whole)
        with PIL.Image.open(Path(folder) / "shot.png") as shot:
            shot.convert("RGB").quantize(256).save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    """All screenshots."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        served = build_page(Models(), examples=ROOT / "examples", folder=Path(folder))
        address = launch(served, host="127.0.0.1", port=None, show=False, wait=False)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height, scheme in SHOTS:
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.wait_for_selector(".starters button")
            page.wait_for_timeout(500)
            save(page, f"web-start-{width}-{scheme}")
            chat(page)
            save(page, f"web-chat-{width}-{scheme}")
            inspect(page)
            save(page, f"web-inspector-{width}-{scheme}", whole=width < 700)
            context.close()
        browser.close()
        served.close()


if __name__ == "__main__":
    main()
