"""The real page in a real browser, talking with `seed:mini`: as a person would use it."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from rebus.apps.files import open_conversation
from rebus.apps.memory import recall
from rebus.images import note_of, open_image
from rebus.mini.llm import BASE_LLM
from rebus.packages import user_cache

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WATCH = """
window.bars = new Set(); window.previews = new Set();
new MutationObserver(() => {
  document.querySelectorAll('#pending progress').forEach((bar) => window.bars.add(bar.value));
  document.querySelectorAll('#pending .drawing img').forEach((image) => window.previews.add(image.src));
}).observe(document.querySelector('#pending'), { childList: true, subtree: true, attributes: true });
"""
"""Notes what a drawing shows on its way, which may be faster than a test looks."""
LONG = 120_000
"""Milliseconds that a reply may take on a machine that does other work."""

pytest.importorskip("gradio", reason="the page's library is not installed: pip install 'rebus-lm[demo]'")
pytest.importorskip("playwright", reason="the browser's driver is not installed: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here to drive: apt install chromium"),
    pytest.mark.skipif(
        not (user_cache() / BASE_LLM).exists(), reason="the base language model is not here yet: `make demo` fetches it"
    ),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
EVIL = '<img src=x onerror="document.title=1">{{value}} ${1+1}'


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page is served: the models are loaded once for all of these tests."""
    from rebus.apps.web.models import Models
    from rebus.apps.web.page import build_page, launch

    models = Models(["seed:mini", "lavit:tiny", "seed_x:tiny"], device="cpu")
    page = build_page(models, examples=EXAMPLES, folder=tmp_path_factory.mktemp("given"))
    yield launch(page, host="127.0.0.1", port=None, show=False, wait=False), models
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """`visit(width=…)` opens the page as a new visitor; nothing may be asked of other hosts and nothing may go wrong."""
    wrong: list[str] = []
    contexts = []

    def call(width=1440, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LONG)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: _outside(request.url) and wrong.append(f"asked for {request.url}"))
        page.goto(address[0])
        page.wait_for_selector("#message textarea")
        page.wait_for_selector(".starters button")
        return page

    yield call
    for context in contexts:
        context.close()
    assert not wrong


def _outside(url: str) -> bool:
    return not re.match(r"(https?://127\.0\.0\.1|https?://localhost|data:|blob:)", url)


def ask(page, text, files=(), turns=1):
    if files:
        page.set_input_files("#message input[type=file]", [str(file) for file in files])
        page.wait_for_function(f"document.querySelectorAll('#message .thumbnail-item').length == {len(files)}")
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")
    wait_for_turns(page, turns)


def wait_for_turns(page, turns):
    page.wait_for_function(f"document.querySelectorAll('#past .turn').length == {turns}")
    page.wait_for_function("document.querySelector('#pending .turn') === null")


def draws(page):
    page.locator("#modality").get_by_text("Picture").click()


def box(page):
    return page.input_value("#message textarea")


# ------------------------------------------------------------------------------------------------ talking


def test_upload_ask_and_undo(visit):
    page = visit()
    ask(page, "What is in this picture?", [EXAMPLES / "red-apple-noto.png", EXAMPLES / "cat-noto.png"])
    asked, said = page.locator("#past .user"), page.locator("#past .model")
    assert asked.locator("img").count() == 2 and "What is in this picture?" in asked.inner_text()
    assert len(said.inner_text().split()) > 1 and box(page) == ""
    page.click("#undo")
    wait_for_turns(page, 0)
    page.wait_for_selector(".starters")
    assert box(page) == "What is in this picture?"


def test_draw_change_branch_save_and_open(visit, address, tmp_path):
    page = visit()
    draws(page)
    page.evaluate(WATCH)
    ask(page, "Draw a snowman in Noto style.")
    bars, previews = page.evaluate("[window.bars.size, window.previews.size]")
    assert bars >= 2 and previews >= 2  # it could be seen to grow: a bar, and what there was of the picture

    page.click("button.picture")
    page.wait_for_selector(".chosen")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "drawn.png")
    data = (tmp_path / "drawn.png").read_bytes()
    _, drawn = recall(note_of(data), open_image(tmp_path / "drawn.png"))
    assert drawn.model == "seed:mini" and drawn.weights == address[1].get("seed:mini").weights

    page.get_by_role("button", name="Change it").click()
    page.wait_for_selector("text=seed:mini draws it anew")
    ask(page, EVIL, turns=2)
    assert EVIL in page.locator("#past .user").last.inner_text() and page.title() == "rebus"
    assert page.locator("#past [data-picture]").count() == 3 and page.locator("#past [data-picture='2']").count() == 1

    page.get_by_role("button", name="Branch from turn 1").click()
    wait_for_turns(page, 1)
    ask(page, "Draw a red car.", turns=2)
    assert page.locator("#branches").is_visible()
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "talk.json")
    kept, notices = open_conversation(tmp_path / "talk.json", address[1].get("seed:mini"))
    assert [e.asked.text for e in kept.path] == ["Draw a snowman in Noto style.", "Draw a red car."] and not notices
    assert len(kept.branches) == 2 and all(image.drawn.model == "seed:mini" for image in kept.images)

    page.click("#new")
    wait_for_turns(page, 0)
    page.set_input_files("input[type=file][accept*='.json']", str(tmp_path / "talk.json"))
    wait_for_turns(page, 2)
    assert page.locator("#branches").is_visible() and "Draw a red car." in page.inner_text("#past")


def test_a_reply_can_be_stopped_and_the_message_comes_back(visit, address, monkeypatch):
    system = address[1].get("seed:mini")

    def slowly(*given, **options):
        for piece in type(system).stream(system, *given, **options):
            yield piece
            time.sleep(0.5)

    monkeypatch.setattr(system, "stream", slowly)
    page = visit()
    draws(page)
    page.fill("#message textarea", "Draw a house.")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("#pending .said.model")
    page.click("#message .stop-button")
    page.wait_for_function("document.querySelector('#message textarea').value == 'Draw a house.'")
    wait_for_turns(page, 0)


def test_errors_are_told_kindly_and_lose_nothing(visit, tmp_path):
    page = visit()
    (tmp_path / "broken.png").write_bytes((EXAMPLES / "cat-noto.png").read_bytes()[:300])
    page.set_input_files("#message input[type=file]", str(tmp_path / "broken.png"))
    page.wait_for_selector("#message .thumbnail-item")
    page.fill("#message textarea", "What is this?")
    page.press("#message textarea", "Enter")
    told = page.locator(".toast-wrap")
    told.get_by_text("damaged or cut-off").wait_for()
    assert "Copy or download it again." in told.inner_text() and "Traceback" not in told.inner_text()
    assert str(tmp_path) not in told.inner_text() and "/tmp/" not in told.inner_text()
    assert box(page) == "What is this?" and page.locator("#past .turn").count() == 0

    (tmp_path / "talk.json").write_text(json.dumps({"messages": [{"role": "user", "content": "alone"}]}))
    page.set_input_files("input[type=file][accept*='.json']", str(tmp_path / "talk.json"))
    told.get_by_text("questions and replies in turn").wait_for()


def test_the_keyboard_is_enough(visit):
    page = visit()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.start") == "0":
            break
    assert page.evaluate("document.activeElement.dataset.start") == "0"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where one is can be seen
    page.keyboard.press("Enter")
    wait_for_turns(page, 1)
    page.locator("button.picture").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".chosen")
    page.locator("#modality input").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#modality input").nth(1).is_checked()


# ------------------------------------------------------------------------------------------------ looking


def test_chips_are_one_stop_of_the_tab_key_and_arrows_move_among_them(visit):
    page = visit()
    page.get_by_role("tab", name="Inspector").click()
    page.set_input_files("#picture input[type=file]", str(EXAMPLES / "red-apple-noto.png"))
    page.wait_for_selector("text=Code 1 of 32")
    stops = page.locator("#chips input[tabindex='0']")
    assert page.locator("#chips input").count() == 32 and stops.count() == 1
    stops.focus()
    for key, told in (("ArrowRight", 2), ("ArrowDown", 3), ("ArrowLeft", 2), ("End", 32), ("ArrowRight", 1)):
        page.keyboard.press(key)
        page.wait_for_selector(f"text=Code {told} of 32")
        assert stops.count() == 1 and page.locator("#chips input").nth(told - 1).is_checked()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#chips')") is None


def test_the_inspector(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Inspector").click()
    page.set_input_files("#picture input[type=file]", str(EXAMPLES / "red-apple-noto.png"))
    page.wait_for_selector("text=Drawn from its codes")
    assert page.locator("#chips label").count() == 32 and "192" in page.inner_text(".facts")

    page.locator("#chips label").nth(4).click()
    page.wait_for_selector("text=Code 5 of 32")
    slider = page.locator("#code input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_selector("text=With 1 code changed")
    assert "→ 256" in page.locator("#chips label").nth(4).inner_text()  # 64 codes a place: the fifth begins at 256

    page.get_by_role("button", name="Between two pictures").click()
    page.set_input_files("#second input[type=file]", str(EXAMPLES / "cat-noto.png"))
    page.wait_for_selector("#second img")
    page.click("#blend")
    page.wait_for_selector("#between >> text=100% of the other")
    assert page.locator("#between img").count() == 5

    panels = page.locator("#panels")
    panels.get_by_role("tab", name="Patches").click()
    page.wait_for_selector("#patches-shown >> text=What is kept")
    page.locator("#how").get_by_text("a budget").click()
    page.fill("#budget input[type=number]", "7")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Drawn from its 7 codes")

    panels.get_by_role("tab", name="Views").click()
    page.wait_for_selector("#views-shown >> text=Drawn from its 4 vectors")
    assert "<box_start><loc-8><loc-8><loc-6><loc-6><box_end>" in page.inner_text("#region")

    panels.get_by_role("tab", name="Side by side").click()
    page.wait_for_function("document.querySelectorAll('.card dl').length == 4")
    page.wait_for_function("(document.querySelector('.cards').innerText.match(/ dB/g) || []).length == 3")
    assert page.locator(".card").count() == 4


def test_a_broken_picture_in_the_inspector(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Inspector").click()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "broken.png"))
    page.wait_for_selector(".note >> text=broken.png")


@pytest.mark.parametrize("width, height", [(1440, 900), (390, 844)])
def test_it_fits(visit, width, height):
    backgrounds = set()
    for scheme in ("light", "dark"):
        page = visit(width, height, scheme)
        for tab in ("Inspector", "Chat"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for what in ("#message textarea", "#message .submit-button", "#modality", ".starters button >> nth=0"):
            seen = page.locator(what).bounding_box()
            assert seen["x"] >= 0 and seen["x"] + seen["width"] <= width and seen["y"] + seen["height"] <= height, what
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2  # light and dark
