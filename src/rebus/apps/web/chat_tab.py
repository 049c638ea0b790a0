"""The page's conversation: what is shown, and what happens when something is typed or pressed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from rebus.apps.conversation import Exchange
from rebus.apps.files import open_conversation, save_conversation
from rebus.apps.memory import save_drawing
from rebus.apps.web import transcript
from rebus.apps.web.models import Models
from rebus.apps.web.options import build_options
from rebus.apps.web.session import Question, Reply, Session, answer, compose, otherwise, sampling_of, seed_of
from rebus.document import Image, user
from rebus.errors import RebusError
from rebus.grammar import Modality

Update = dict[Any, Any]
Starter = tuple[str, Image | None]

MODALITIES = [("Auto", "any"), ("Text", "text"), ("Picture", "image")]
REDRAW_SECONDS = 0.08
"""How long the page is left alone between two pieces of a reply."""

PRESSED = """
element.addEventListener('click', (event) => {
  const pressed = event.target.closest('[data-do]');
  if (pressed) trigger('click', { ...pressed.dataset });
});
"""
"""A press of any button inside becomes a click with the button's `data-` attributes."""


def warn(error: RebusError | str) -> None:
    """Tells the visitor in a friendly way what was wrong."""
    gr.Warning(transcript.safe(str(error)), duration=12, title="That did not work")


@dataclass
class ChatTab:
    """The components that others need too."""

    session: gr.State
    model: gr.Dropdown
    inspect: gr.Button


def build_chat(models: Models, starters: Sequence[Starter], folder: Path) -> ChatTab:
    """Lays the conversation out and connects it. Files for the visitor to keep are written into `folder`."""
    session = gr.State(Session())
    with gr.Row(elem_id="chat", equal_height=False):
        with gr.Column(scale=7, min_width=320, elem_id="talking"):
            with gr.Column(elem_id="transcript"):
                past = gr.HTML(transcript.render_empty(starters), js_on_load=PRESSED, elem_id="past")
                pending = gr.HTML("", elem_id="pending", js_on_load=FOLLOW)
            with gr.Group(visible=False, elem_id="chosen") as chosen:
                chosen_card = gr.HTML("")
                with gr.Row(elem_classes="quiet"):
                    change = gr.Button("Change it", size="sm", variant="primary", min_width=60)
                    inspect = gr.Button("Look inside", size="sm", min_width=60)
                    download = gr.Button("Download", size="sm", min_width=60)
                    let_go = gr.Button("Let go", size="sm", min_width=60)
            modality = gr.Radio(
                MODALITIES, value="any", label="Answer with", elem_id="modality", container=False, show_label=False
            )
            box = gr.MultimodalTextbox(
                file_types=["image"],
                file_count="multiple",
                sources=["upload"],
                placeholder="Write a message, add or paste pictures",
                show_label=False,
                label="Message",
                autofocus=True,
                max_plain_text_length=8000,
                elem_id="message",
            )
        with gr.Column(scale=3, min_width=280, elem_id="side"):
            model = gr.Dropdown(models.ready, value=models.ready[0], label="Model", elem_id="model")
            adapter = gr.Dropdown(
                [("usual", ""), *((name, name) for name in models.adapters)],
                value="",
                label="Adapter",
                visible=bool(models.adapters),
                elem_id="adapter",
            )
            gr.HTML(_about(models), elem_id="about")
            with gr.Accordion("Sampling", open=False, elem_id="sampling"):
                options = build_options()
            with gr.Row(elem_classes="quiet"):
                undo = gr.Button("Undo", size="sm", min_width=90, elem_id="undo")
                new = gr.Button("New", size="sm", min_width=90, elem_id="new")
            with gr.Row(elem_classes="quiet"):
                save = gr.Button("Save", size="sm", min_width=90, elem_id="save")
                reopen = gr.UploadButton("Open", size="sm", min_width=90, file_types=[".json"], elem_id="open")
            branches = gr.Dropdown([], label="Branches", visible=False, elem_id="branches")
            file = gr.DownloadButton("a file to keep", visible="hidden", elem_id="file")

    view = [session, past, pending, chosen, chosen_card, change, branches, box]

    # -------------------------------------------------------------------------------------- what is shown

    def shown(s: Session, name: str) -> Update:
        """The page as the session says."""
        s.drop_lost_choice()
        conversation, number = s.conversation, s.number_of(s.chosen)
        ends = conversation.branches
        here = next((n for n, end in enumerate(ends) if end is conversation.last), None)
        card = ""
        if s.chosen is not None:
            edits = s.editing and models.get(name).edits
            card = transcript.render_chosen(s.chosen, number, s.editing, edits, name)
        return {
            session: s,
            past: transcript.render_path(conversation.path, s.chosen) or transcript.render_empty(starters),
            pending: "",
            chosen: gr.update(visible=s.chosen is not None),
            chosen_card: card,
            change: gr.update(value="Only ask" if s.editing else "Change it"),
            branches: gr.update(
                choices=[(conversation.branch_title(end), n) for n, end in enumerate(ends)],
                value=here,
                visible=len(ends) > 1 or here is None and bool(ends),
            ),
        }

    def replying(
        s: Session,
        question: Question,
        system: Any,
        mode: Modality,
        chances: Sequence[Any],
        name: str,
        typed: dict[str, Any],
        before: Exchange | None,
    ) -> Iterator[Update]:
        """The page while a reply grows. If there is none in the end, the conversation goes back to `before` and `typed` to
        the box."""
        for notice in question.notices:
            gr.Info(transcript.safe(notice), duration=10, title="About a picture")
        seen, turns = s.conversation.images, len(s.conversation.exchanges)
        empty = {"text": "", "files": []}
        path = transcript.render_path(s.conversation.path)
        yield {
            past: path,
            chosen: gr.update(visible=False),
            box: gr.update(value=empty, submit_btn=False, stop_btn=True),
        }
        told = time.monotonic()
        try:
            *given, seed = chances
            replies = answer(
                s,
                system,
                question,
                modality=mode,  # type: ignore[arg-type]
                sampling=sampling_of(*given),
                seed=seed_of(seed),
            )
            for reply in replies:
                if reply.progress is not None or time.monotonic() - told >= REDRAW_SECONDS:
                    yield {pending: transcript.render_pending(question.message, reply, seen)}
                    told = time.monotonic()
        except RebusError as error:
            warn(error)
        finally:
            done = len(s.conversation.exchanges) > turns
            if not done:
                s.conversation.last = before
        yield {**shown(s, name), box: gr.update(value=empty if done else typed, submit_btn=True, stop_btn=False)}

    def ready(name: str, adapter_name: str, s: Session, typed: str) -> Iterator[Update]:
        """Loads the model, telling so the first time."""
        waits = transcript.render_pending(user(typed), Reply(), waits_for=f"waking {name} up")
        yield {past: transcript.render_path(s.conversation.path), pending: waits, session: s}
        models.get(name, adapter_name)

    # -------------------------------------------------------------------------------------- what happens

    def send(
        s: Session, typed: dict[str, Any], name: str, adapter_name: str, mode: Modality, *chances: Any
    ) -> Iterator[Update]:
        try:
            yield from ready(name, adapter_name, s, typed["text"])
            system = models.get(name, adapter_name)
            question = compose(s, typed["text"], typed["files"], system)
        except RebusError as error:
            warn(error)
            yield {**shown(s, name), box: gr.update(value=typed)}
            return
        yield from replying(s, question, system, mode, chances, name, typed, s.conversation.last)

    def press(
        event: gr.EventData,
        s: Session,
        typed: dict[str, Any],
        name: str,
        adapter_name: str,
        mode: Modality,
        *chances: Any,
    ) -> Iterator[Update]:
        """A button inside the conversation was pressed."""
        data = {key: str(value) for key, value in (event._data or {}).items()}
        before = s.conversation.last
        try:
            match data:
                case {"do": "choose", "picture": number}:
                    s.choose(int(number))
                    yield shown(s, name)
                case {"do": "branch", "turn": turn}:
                    s.conversation.back_to(int(turn))
                    gr.Info("What you say next begins a branch. The other one is kept under Branches.", duration=6)
                    yield shown(s, name)
                case {"do": "again", "turn": turn}:
                    asked = s.conversation.path[int(turn) - 1].asked
                    yield from ready(name, adapter_name, s, asked.text)
                    s.conversation.back_to(int(turn) - 1)
                    system = models.get(name, adapter_name)
                    again = (otherwise(chances[0]), *chances[1:])
                    yield from replying(s, Question(asked), system, mode, again, name, typed, before)
                case {"do": "start", "start": number}:
                    text, image = starters[int(number)]
                    asked = user(*([image] if image is not None else []), text)
                    yield from ready(name, adapter_name, s, text)
                    system = models.get(name, adapter_name)
                    yield from replying(s, Question(asked), system, mode, chances, name, typed, before)
        except (RebusError, ValueError, IndexError) as error:
            s.conversation.last = before
            warn(str(error))
            yield shown(s, name)

    def stop(s: Session) -> Session:
        s.stopping = True
        return s

    def take_back(s: Session, name: str) -> Update:
        try:
            asked = s.conversation.undo()
        except RebusError as error:
            warn(error)
            return shown(s, name)
        return {**shown(s, name), box: gr.update(value={"text": asked.text, "files": []})}

    def begin_anew(name: str) -> Update:
        return {**shown(Session(), name), box: gr.update(value={"text": "", "files": []})}

    def switch(s: Session, number: int | None, name: str) -> Update:
        if number is not None:
            s.conversation.switch(int(number))
        return shown(s, name)

    def toggle_change(s: Session, name: str) -> Update:
        s.editing = not s.editing
        return {**shown(s, name), modality: "image" if s.editing else "any"}

    def release(s: Session, name: str) -> Update:
        was_editing, s.chosen, s.editing = s.editing, None, False
        return {**shown(s, name), modality: gr.update(value="any") if was_editing else gr.skip()}

    def keep_conversation(s: Session) -> Any:
        if not s.conversation.path:
            warn("The conversation is empty, so there is nothing to save. Say something first.")
            return gr.skip()
        return str(save_conversation(s.conversation, folder / uuid.uuid4().hex / "conversation.json"))

    def keep_picture(s: Session) -> Any:
        return gr.skip() if s.chosen is None else str(save_drawing(s.chosen, folder / uuid.uuid4().hex / "picture.png"))

    def open_file(s: Session, path: str, name: str, adapter_name: str) -> Update:
        try:
            conversation, notices = open_conversation(Path(path), models.get(name, adapter_name))
        except RebusError as error:
            warn(str(error).replace(path, Path(path).name))
            return shown(s, name)
        for notice in notices:
            gr.Info(transcript.safe(notice), duration=10)
        return shown(Session(conversation), name)

    inputs = [session, box, model, adapter, modality, *options]
    every = [*view, modality]
    working = {"concurrency_id": "model", "concurrency_limit": 1}
    box.submit(send, inputs, view, show_progress="hidden", **working)
    past.click(press, inputs, view, show_progress="hidden", **working)
    box.stop(stop, session, session, show_progress="hidden")
    undo.click(take_back, [session, model], view, show_progress="hidden")
    new.click(begin_anew, model, view, show_progress="hidden")
    branches.input(switch, [session, branches, model], view, show_progress="hidden")
    change.click(toggle_change, [session, model], every, show_progress="hidden")
    let_go.click(release, [session, model], every, show_progress="hidden")
    save.click(keep_conversation, session, file).then(None, js=PRESS_FILE)
    download.click(keep_picture, session, file).then(None, js=PRESS_FILE)
    reopen.upload(open_file, [session, reopen, model, adapter], view, **working)
    return ChatTab(session, model, inspect)


FOLLOW = """
const frame = document.querySelector('#transcript');
let low = true;
frame.addEventListener('scroll', () => { low = frame.scrollHeight - frame.scrollTop - frame.clientHeight < 120; });
const follow = () => { if (low && frame.querySelector('.turn')) frame.scrollTop = frame.scrollHeight; };
new MutationObserver(follow).observe(frame, { childList: true, subtree: true, characterData: true });
frame.addEventListener('load', follow, true);
new ResizeObserver(follow).observe(frame);
"""
"""The conversation stays at its end, unless one has scrolled up."""

PRESS_FILE = "() => setTimeout(() => document.querySelector('#file')?.click(), 300)"
"""A file that was just written is downloaded."""


def _about(models: Models) -> str:
    """What is offered, and what is missing, under the choice of a model."""
    lines = [
        f"<li class='{'ready' if one.ready else 'lacking'}'>"
        + (
            f"<b>{transcript.safe(one.name)}</b> {transcript.safe(one.says)}"
            if one.ready
            else transcript.safe(one.says)
        )
        + "</li>"
        for one in sorted(models.offers, key=lambda one: not one.ready)
    ]
    return f"<ul class='offers'>{''.join(lines)}</ul>"
