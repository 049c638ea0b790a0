"""The page without a page: what it offers, how a question is put together and answered, and its HTML."""

from __future__ import annotations

import re

import PIL.Image
import pytest
import torch
from tests import tiny

from rebus.apps.web import figures, transcript
from rebus.apps.web.command import named_folders
from rebus.apps.web.models import Models, offer
from rebus.apps.web.session import (
    Question,
    Session,
    answer,
    compose,
    otherwise,
    readable,
    sampling_of,
    seed_of,
)
from rebus.document import Box, Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.sampling import Sampling
from rebus.visual import Codes, Features, Progress

RED = PIL.Image.new("RGB", (64, 64), (220, 30, 30))


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (12, 10), (200, 100, 0)).save(path)
    return str(path)


def ask(session, system, question, **others):
    if not isinstance(question, Question):
        question = compose(session, question, [], system)
    options = {"modality": "any", "sampling": Sampling(), "seed": 1} | others
    return list(answer(session, system, question, **options))


# ------------------------------------------------------------------------------------------------ questions and replies


def test_a_question_holds_pictures_before_words(system, cat):
    message = compose(Session(), " what is it? ", [cat, cat], system).message
    assert [type(part).__name__ for part in message.content] == [
        "Image",
        "Image",
        "str",
    ] and message.text == "what is it?"


def test_a_reply_grows_and_then_is_part_of_the_conversation(system):
    session = Session()
    replies = ask(session, system, "hello")
    assert replies[0].parts == () and replies[1].parts == ("You",) and replies[2].parts == ("You said ",)
    assert [r.progress.step for r in replies if r.progress] == [1, 2]
    asked, answered = session.conversation.document.messages
    assert asked.text == "hello" and answered.content == replies[-1].parts and session.asked is None
    ask(session, system, "and?")
    assert len(system.calls[-1]["document"].messages) == 3 and system.closed == 2


def test_a_stopped_reply_leaves_nothing(system):
    session = Session()
    stream = answer(session, system, compose(session, "hello", [], system), modality="any", sampling=Sampling(), seed=1)
    next(stream)
    next(stream)
    session.stopping = True
    assert list(stream) == [] and not session.conversation.path and system.closed == 1
    assert session.asked.text == "hello"


def test_a_page_that_is_left_stops_the_model(system):
    session = Session()
    stream = answer(session, system, compose(session, "hello", [], system), modality="any", sampling=Sampling(), seed=1)
    next(stream)
    next(stream)
    stream.close()
    assert system.closed == 1 and not session.conversation.path


def test_the_same_seed_gives_the_same_reply():
    system = tiny.system("seed")
    sampling = Sampling(max_new_tokens=20, temperature=1)
    said = [ask(Session(), system, "Hello", seed=seed, sampling=sampling)[-1].parts for seed in (1, 1, 2)]
    first, again, other = ([p if isinstance(p, str) else p.generated.ids_N.tolist() for p in parts] for parts in said)
    assert first == again != other


def test_a_chosen_picture_is_asked_about_or_changed(system, cat):
    session = Session()
    ask(session, system, "hello")
    session.choose(1)
    question = compose(session, "what is it?", [], system)
    assert question.source is None and question.message.images == session.conversation.images
    session.editing = True
    question = compose(session, "make it blue", [cat], system)
    assert question.source is session.chosen.pixels and len(question.message.images) == 2
    with pytest.raises(RebusError, match="nothing says how"):
        compose(session, " ", [], system)
    with pytest.raises(RebusError, match="no picture 3"):
        session.choose(3)


def test_an_edit_starts_from_the_picture_that_was_chosen_and_not_from_the_last():
    system = tiny.system("seed_x")
    session = Session()
    drawing = {"modality": "image", "sampling": Sampling(max_new_tokens=40)}
    ask(session, system, Question(user(tiny.picture(), "Change it.")), **drawing)
    ask(session, system, Question(user(tiny.picture((0, 160, 0)), "Another.")), **drawing)
    session.choose(1)
    session.editing = True
    first = session.chosen.pixels
    ask(session, system, "Bluer.", **drawing)
    assert session.conversation.images[-1].drawn.source is first
    assert session.chosen is None and not session.editing


def test_a_choice_is_forgotten_with_its_picture(system):
    session = Session()
    ask(session, system, "hello")
    session.choose(1)
    session.drop_lost_choice()
    assert session.chosen is not None
    session.conversation.undo()
    session.drop_lost_choice()
    assert session.chosen is None


@pytest.mark.parametrize(
    "text, files, says",
    [("", [], "nothing to answer"), ("x", ["absent.png"], "no file"), ("x", ["a"] * 17, "takes 16")],
)
def test_what_cannot_be_asked(system, text, files, says):
    with pytest.raises(RebusError, match=says):
        compose(Session(), text, files, system)


def test_another_model_reads_what_one_drew_from_its_pixels():
    codes = Codes(torch.arange(8), "seed random")
    kept, other = Image(RED, generated=codes), Image(generated=codes)
    document = Document((user("a"), assistant(kept, other)))
    assert readable(document, "seed random").images[0] is kept
    bare, left = readable(document, "lavit 1").images
    assert (bare.generated, bare.pixels) == (None, RED) and left is other  # without pixels there is nothing else


def test_a_conversation_goes_on_with_another_model():
    session = Session()
    for paper in tiny.PAPERS:
        ask(session, tiny.system(paper), "Draw.", modality="image", sampling=Sampling(max_new_tokens=40))
    kinds = [type(image.generated) for image in session.conversation.images]
    assert kinds == [{"seed_x": Features}.get(paper, Codes) for paper in tiny.PAPERS]


def test_options_become_settings():
    sampling = sampling_of(0.5, 0.9, 64, 1.5, 0, 0, 2.0)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.guidance) == (0.5, 0.9, 64, 1.5)
    assert (sampling.image.steps, sampling.image.guidance, sampling.image.image_guidance) == (None, None, 2.0)
    assert seed_of(7) == 7 and 0 <= seed_of(None) < 2**31 and otherwise(0) > 0 and otherwise(1.2) == 1.2
    for seed in (-1, 2**60):
        with pytest.raises(RebusError, match="whole number"):
            seed_of(seed)


# ------------------------------------------------------------------------------------------------ what is offered


def test_what_is_missing_is_said_kindly():
    missing = offer("lavit:mini") if not offer("lavit:mini").ready else None
    if missing is not None:
        assert missing.says == "lavit:mini has no weights here yet; runs/lavit_mini.sh trains them."
    assert (
        offer("seed:v2-8b").says == "seed:v2-8b needs published weights: turn them into a folder with `rebus convert`."
    )
    assert offer("seed:mini").ready and "embedded" in offer("seed:mini").says
    models = Models(["seed:mini", "lavit:tiny"])
    assert models.of_paper("lavit") == "lavit:tiny" and models.of_paper("seed_x") is None
    assert models.missing("seed_x") == "SEED-X was not named when this page was started: `rebus web seed_x:mini`."


def test_a_model_is_loaded_once_and_adapters_share_it(system):
    special = type(system)()
    system.with_adapter = {"folder": special}.__getitem__
    models = Models(["seed:mini"], adapters={"edit": "folder"})
    assert models.get("seed:mini", "edit") is models.get("seed:mini", "edit") is special
    assert models.get("seed:mini") is models.get("seed:mini") is system
    assert len([call for call in system.calls if "load" in call]) == 1


def test_adapters_beside_the_weights_are_offered_and_chat_is_the_usual_one(system, monkeypatch):
    specials = {name: type(system)() for name in ("chat", "edit", "folder")}
    system.with_adapter = specials.__getitem__
    beside = {"seed_x:mini": ["chat", "edit"], "seed:mini": []}
    monkeypatch.setattr("rebus.apps.web.models.adapters_beside", lambda name, weights: beside[name])
    models = Models(["seed:mini", "seed_x:mini"], adapters={"own": "folder"})
    assert models.adapters == {"chat": "chat", "edit": "edit", "own": "folder"}
    assert models.get("seed_x:mini") is models.get("seed_x:mini", "chat") is specials["chat"]
    assert models.get("seed_x:mini", "edit") is specials["edit"] and models.get("seed:mini") is system


@pytest.mark.parametrize("name, adapter", [("lavit:tiny", ""), ("os.path", ""), ("seed:mini", "other")])
def test_what_was_not_named_at_the_start_is_never_loaded(system, name, adapter):
    with pytest.raises(RebusError, match="This page"):
        Models(["seed:mini"]).get(name, adapter)
    assert not system.calls


@pytest.mark.parametrize(
    "words", [["seed:huge"], ["seed:v2-8b"], ["seed:mini", "lavit:tiny", "--weights", "x"], ["--adapters", "x=absent"]]
)
def test_what_cannot_be_offered_ends_before_anything_is_served(run, words):
    assert run("web", *words).code == 2


def test_adapters_are_named_by_folders(tmp_path):
    assert named_folders((f"edit={tmp_path}",)) == {"edit": tmp_path}
    for wrong in ("edit", "=x", f"edit={tmp_path}/absent"):
        with pytest.raises(RebusError, match="NAME=FOLDER"):
            named_folders((wrong,))


# ------------------------------------------------------------------------------------------------ HTML

EVIL = '<img src=x onerror="alert(1)">{{value}}${1+1}`'


def test_what_anyone_wrote_is_text(system):
    session = Session()
    session.conversation.add(user(EVIL), assistant(EVIL, Box(0.5, 0.5, 0.5, 0.5)))
    for html in (
        transcript.render_path(session.conversation.path),
        transcript.render_pending(user(EVIL), ask(Session(), system, EVIL)[-1]),
        transcript.render_empty([(EVIL, None)]),
        figures.note(EVIL) + figures.facts({EVIL: EVIL}) + figures.figure(RED, EVIL),
    ):
        assert "&lt;img" in html and 'onerror="' not in html and not re.search(r"\{\{|\$\{|`", html)


def test_pictures_have_numbers_names_and_one_button_each():
    image = Image(RED)
    session = Session()
    session.conversation.add(user(image, "a"), assistant(Image(RED)))
    session.conversation.add(user(image, "b"), assistant("c"))
    html = transcript.render_path(session.conversation.path, chosen=image)
    assert re.findall(r'data-picture="(\d+)"', html) == ["1", "2", "1"]
    assert re.findall(r'aria-pressed="(\w+)"', html) == ["true", "false", "true"]
    assert (
        html.count('data-do="branch"') == 2
        and 'data-turn="2"' in html
        and 'alt="A picture that the model drew"' in html
    )


def test_progress_is_a_bar_with_what_there_is_so_far():
    from rebus.apps.web.session import Reply

    html = transcript.render_pending(user("a"), Reply((), Progress(3, 12, RED)))
    assert '<progress max="12" value="3"' in html and "The picture so far" in html and "step 3 of 12" in html
    assert "waking seed up" in transcript.render_pending(user("a"), Reply(), waits_for="waking seed up")


def test_boxes_are_shown_over_the_picture_before_them():
    asked = user(Image(RED), "where?")
    session = Session()
    session.conversation.add(asked, assistant("there", Box(0.5, 0.5, 0.5, 0.5)))
    html = transcript.render_path(session.conversation.path)
    assert "regions that were named" in html and "box 0.50 0.50 0.50 0.50" in html


def test_a_large_picture_is_shown_small():
    url = transcript.data_url(Image(PIL.Image.effect_noise((2000, 1000), 50).convert("RGB")))
    from rebus.apps.files import image_at

    assert image_at(url).size == (512, 256)
