"""The whole page: conversation and inspector, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from rebus.apps.web.chat_tab import Starter, build_chat
from rebus.apps.web.inspector_tab import build_inspector
from rebus.apps.web.models import Models
from rebus.document import Image
from rebus.images import open_image

STYLE = Path(__file__).with_name("style.css")
KEYS = Path(__file__).with_name("keys.js")

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

STARTERS: tuple[tuple[str, str | None], ...] = (
    ("What is in this picture?", "red-apple-noto.png"),
    ("Draw a snowman in Noto style.", None),
    ("Give me two examples from animals and nature, each with a picture.", None),
)

BLUE = gr.themes.Color(
    "#f0f6fb",
    "#dbe9f4",
    "#bdd6ea",
    "#93bbdc",
    "#6399c8",
    "#427bae",
    "#2f5d8a",
    "#294f74",
    "#254361",
    "#213a53",
    "#152536",
)
SAND = gr.themes.Color(
    "#faf9f7",
    "#f4f2ee",
    "#e9e5de",
    "#d6d0c6",
    "#a8a199",
    "#77716a",
    "#4f4a53",
    "#38353e",
    "#2b2930",
    "#232127",
    "#17161a",
)


def theme() -> gr.themes.Base:
    """Colours and shapes; fonts are those that a machine has, so that nothing is fetched."""
    return gr.themes.Base(primary_hue=BLUE, neutral_hue=SAND, radius_size="lg", font=FONTS, font_mono=MONO).set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_label_background_fill="white",
        block_label_background_fill_dark="*neutral_900",
        block_shadow="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_600",
        slider_color="*primary_600",
        button_secondary_background_fill="*neutral_50",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_200",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        checkbox_label_background_fill="*neutral_50",
        checkbox_label_background_fill_hover="*neutral_200",
        checkbox_label_background_fill_dark="*neutral_800",
        checkbox_label_background_fill_hover_dark="*neutral_700",
        checkbox_label_background_fill_selected="*primary_100",
        checkbox_label_background_fill_selected_dark="*primary_800",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="*neutral_200",
        checkbox_label_border_color_dark="*neutral_700",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
    )


def build_page(models: Models, *, examples: Path, folder: Path) -> gr.Blocks:
    """The page over `models`. Pictures to try are those of the folder `examples`, if there is one; `folder` takes the files
    that visitors are given."""
    pictures = sorted(examples.glob("*.png")) if examples.is_dir() else []
    with gr.Blocks(title="rebus", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            '<header id="head"><h1>rebus</h1><p>Models that read and write sentences of words and pictures.</p></header>'
        )
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Chat", id="chat"):
                chat = build_chat(models, _starters(pictures), folder)
            with gr.Tab("Inspector", id="inspector"):
                picture = build_inspector(models, pictures)

        def look_inside(session: Any) -> Any:
            image = session.chosen
            if image is None or image.pixels is None:
                return gr.skip(), gr.skip()
            return gr.Tabs(selected="inspector"), image.pixels

        chat.inspect.click(look_inside, chat.session, [tabs, picture], show_progress="hidden")
    return page


def _starters(pictures: Sequence[Path]) -> list[Starter]:
    by_name = {path.name: path for path in pictures}
    return [
        (text, Image(open_image(by_name[name])) if name else None)
        for text, name in STARTERS
        if name is None or name in by_name
    ]


def launch(
    page: gr.Blocks, *, host: str, port: int | None, show: bool, wait: bool = True, largest: int = 32_000_000
) -> str:
    """Serves the page, telling its address; uploads have at most `largest` bytes. Returns the address when it does not
    wait. Raises OSError when the port is taken."""
    page.queue(max_size=64)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=show,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        max_file_size=largest,
        theme=theme(),
        css=STYLE.read_text(encoding="utf-8"),
        js=KEYS.read_text(encoding="utf-8"),
        ssr_mode=False,
        strict_cors=True,
        favicon_path=None,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        run_history=False,
    )
    if wait:
        page.block_thread()
    return address
