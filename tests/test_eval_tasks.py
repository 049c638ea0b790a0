"""Every task on systems of which the answer is known: a perfect one reaches the ceiling, a deaf one is at chance.

The systems are oracles over the small set of pictures; no weights are involved, except in the test of kept text.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from tests import tiny

from rebus.data.pictures import load_pictures
from rebus.data.scenes import render
from rebus.data.wording import named, style_name
from rebus.document import Image, Message, assistant
from rebus.errors import RebusError
from rebus.evals import interleaved as books
from rebus.evals import scenes as scene_task
from rebus.evals.exam import EvalConfig, Exam, generator
from rebus.evals.figures import Figure, Sample
from rebus.evals.nearest import choose, plain_rows
from rebus.evals.report import as_markdown, number, write_report
from rebus.evals.run import TASKS, evaluate, values, weights_hash
from rebus.evals.text_kept import base_system, text_kept
from rebus.evals.vqa import scene_questions, single_questions
from rebus.images import prepare
from rebus.nn.text_model import TextModel
from rebus.sampling import Sampling
from rebus.visual import Codes, Progress

PICTURES = load_pictures(Path(__file__).parent / "data" / "pictures")
CONFIG = EvalConfig(split="train", n=20, names=18, seeds=(0, 1), batch=7, samples=4)


def look(pictures):
    """Colours on a grid of 8 x 8: good enough to tell the pictures of the small set apart."""
    if not pictures:
        return torch.zeros(0, 192)
    return F.normalize(prepare(pictures, 8, mean=(0.5,) * 3).flatten(1) + 1e-6, dim=-1)


def key(picture):
    return np.asarray(picture.convert("RGB")).tobytes()


class Grammar:
    """Lays out whatever has codes."""

    special = SimpleNamespace(bos=None)

    def serialize(self, document, **_):
        for image in document.images:
            if image.understood is None and image.generated is None:
                raise RebusError("no codes")
        return [0] * 8


class Tokenizer:
    """The code of a picture is its number; the picture of a code is remembered."""

    config = SimpleNamespace(codebook_size=1000)

    def __init__(self):
        self.seen: list = []

    def encode(self, images, purposes, *, generators=None):
        done = []
        for image in images:
            if image.generated is None:
                self.seen.append(image.pixels)
                codes = Codes(torch.tensor([len(self.seen) - 1]), "oracle")
                image = image.with_tokens(understood=codes, generated=codes)
            done.append(image)
        return done


class Detokenizer:
    def __init__(self, tokenizer, damage=lambda picture, generator: picture):
        self.tokenizer, self.damage = tokenizer, damage

    def decode(self, tokens, *, sources, negatives, generators, sampling):
        yield Progress(1, 1)
        for token, dice in zip(tokens, generators, strict=True):
            yield self.damage(self.tokenizer.seen[int(token.ids_N[0])], dice)


class Oracle:
    """A system that answers from a table: (text, picture) → parts of the reply."""

    name = "oracle"

    def __init__(self, table, otherwise=lambda document, dice: ("",)):
        self.table, self.otherwise = table, otherwise
        self.grammar, self.lm = Grammar(), None
        self.tokenizer = Tokenizer()
        self.detokenizer = Detokenizer(self.tokenizer)
        self.asked: list = []

    def generate(self, documents, *, modality, sampling, generators):
        assert isinstance(sampling, Sampling) and len(documents) == len(generators) <= CONFIG.batch
        said = []
        for document, dice in zip(documents, generators, strict=True):
            text, pictures = document.messages[-1].text, tuple(key(i.pixels) for i in document.images)
            self.asked.append((text, modality))
            said.append(assistant(*(self.table.get((text, pictures)) or self.otherwise(document, dice))))
        return said


def drawn(picture):
    return Image(picture, generated=Codes(torch.tensor([0]), "oracle"))


def perfect(exam) -> Oracle:
    """Knows every answer that the tasks may ask for."""
    config, table = exam.config, {}
    for row in plain_rows(PICTURES, "train"):
        image = PICTURES.image(row)
        table[config.question, (key(image),)] = (f"This is {named(PICTURES, row)}.",)
        asked = f"Draw {named(PICTURES, row)} in {style_name(PICTURES, row)} style."
        table[asked, ()] = (drawn(image),)
    for question in single_questions(exam, config.n) + scene_questions(exam, config.n):
        table[question.text, (key(question.picture),)] = (question.answer,)
    for wanted in scene_task.requests(PICTURES, config.split, config.n, config.choice):
        table[wanted.text, ()] = (drawn(render(PICTURES, wanted.scene).reduce(2)),)
    for asked in books.requests(exam):
        rows = asked.rows or tuple(choose(PICTURES, "train", asked.count, 0))
        parts = [part for row in rows for part in (f"Here is {named(PICTURES, row)}: ", drawn(PICTURES.image(row)))]
        table[asked.text, ()] = tuple(parts)
    return Oracle(table)


def deaf(document, dice):
    """Answers, and draws, something that has nothing to do with what was asked."""
    rows = plain_rows(PICTURES, "train")
    row = rows[int(torch.randint(len(rows), (1,), generator=dice))]
    return f"This is {named(PICTURES, row)}.", drawn(PICTURES.image(row))


def exam_of(system, **changes) -> Exam:
    return Exam(system, PICTURES, look, replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def best() -> Exam:
    exam = exam_of(None)
    return replace(exam, system=perfect(exam))


@pytest.fixture(scope="module")
def worst() -> Exam:
    return exam_of(Oracle({}, deaf), seeds=(0, 1, 2, 3))


def figures(task, exam):
    return {f.name: f for f in TASKS[task](exam) if isinstance(f, Figure)}


# ------------------------------------------------------------------------------------------------ perfect and deaf


@pytest.mark.parametrize("task", ["reconstruct", "caption", "draw", "scenes", "vqa", "interleaved"])
def test_a_perfect_system_reaches_the_ceiling(best, task):
    found = figures(task, best)
    assert found
    for figure in found.values():
        assert figure.ceiling is not None and figure.value >= figure.ceiling - 1e-9, figure
        assert figure.low == figure.high == figure.value  # nothing was left to the seed


def test_a_perfect_system_is_far_above_chance_and_wrong_targets(best):
    for task, name in [
        ("reconstruct", "reconstruct/r_at_1"),
        ("caption", "caption/holds_label"),
        ("draw", "draw/r_at_1"),
        ("scenes", "scenes/count_any"),
        ("scenes", "scenes/colour"),
        ("vqa", "vqa/single"),
        ("interleaved", "interleaved/text_order"),
    ]:
        figure = figures(task, best)[name]
        assert figure.value > 0.9
        assert figure.chance is not None and figure.shuffled is not None
        assert figure.chance < figure.value and figure.shuffled < 0.6


@pytest.mark.parametrize(
    "name", ["caption/holds_label", "caption/holds_keyword", "draw/r_at_1", "draw/style", "scenes/colour"]
)
def test_a_deaf_system_is_at_chance(worst, name):
    figure = figures(name.partition("/")[0], worst)[name]
    assert figure.value == pytest.approx(figure.chance, abs=0.25)
    assert figure.value == pytest.approx(figure.shuffled, abs=0.2)


def test_a_system_that_says_and_draws_nothing_gets_nothing():
    exam = exam_of(Oracle({}))
    assert figures("caption", exam)["caption/holds_label"].value == 0
    assert figures("scenes", exam)["scenes/count"].value == 0
    found = figures("interleaved", exam)
    assert found["interleaved/count"].value == found["interleaved/drawn_order"].value == 0
    assert found["interleaved/valid"].value == 1  # nothing was said, so nothing is broken


def test_an_image_without_codes_is_no_valid_span(best):
    broken = Oracle({}, lambda document, dice: ("See: ", Image(PICTURES.image(0))))
    assert figures("interleaved", exam_of(broken))["interleaved/valid"].value == 0


def test_pictures_in_the_wrong_order_are_noticed(best):
    table = {
        k: (v[2], v[3], v[0], v[1]) if len(v) == 4 and isinstance(v[0], str) else v
        for k, v in best.system.table.items()
    }
    found = figures("interleaved", replace(best, system=Oracle(table)))
    assert found["interleaved/text_order"].value == found["interleaved/text_order"].chance
    assert found["interleaved/drawn_order"].value < 0.2
    assert found["interleaved/count"].value == 1


# ------------------------------------------------------------------------------------------------ what a run is


def test_greedy_words_are_asked_for_once_and_sampled_ones_for_each_seed(best):
    for temperature, runs in ((0.0, 1), (0.7, 2)):
        exam = replace(best, config=replace(best.config, temperature=temperature), system=Oracle({}))
        assert len(figures("caption", exam)["caption/holds_label"].runs) == runs
        assert len(figures("draw", exam)["draw/r_at_1"].runs) == 2


def test_an_item_has_the_same_random_stream_in_any_batch():
    numbers = [torch.rand(1, generator=generator(3, 5)).item() for _ in range(2)]
    assert numbers[0] == numbers[1] != torch.rand(1, generator=generator(3, 6)).item()
    drawings = [figures("draw", exam_of(Oracle({}, deaf), batch=batch))["draw/r_at_1"].runs for batch in (3, 7)]
    assert drawings[0] == drawings[1]


def test_choose_takes_one_of_each_concept_first():
    rows = choose(PICTURES, "train", 18, 0)
    assert len({PICTURES.concept[row] for row in rows}) == 18
    assert choose(PICTURES, "train", 18, 0) == rows != choose(PICTURES, "train", 18, 1)
    assert set(rows) <= set(choose(PICTURES, "train", 25, 0))
    assert not any(PICTURES.skin_tone[row] or PICTURES.gender[row] for row in choose(PICTURES, "train", 99, 0))
    with pytest.raises(RebusError, match="no picture"):
        choose(PICTURES, "train", 3, 0, lambda row: False)


def test_the_gallery_holds_trained_pictures_alone_unless_a_name_was_never_trained(best):
    pairs, unseen = choose(PICTURES, "pairs", 2, 0), choose(PICTURES, "concepts", 2, 0)
    assert {PICTURES.split[row] for row in best.gallery(pairs).rows} == {"train"}
    gallery = best.gallery(unseen)
    assert gallery.names == 18
    assert {PICTURES.split[row] for row in gallery.rows} == {"train", "concepts"}


def test_codebook_counts_the_codes_of_the_whole_split(best):
    found = figures("codebook", replace(best, system=Oracle({})))
    assert found["codebook/used"].value == len(plain_rows(PICTURES, "train"))
    assert found["codebook/not_unique"].value == 0


def test_reconstruction_by_damaged_pictures_lies_between():
    def darker(picture, dice):
        shade = 150 + int(torch.randint(60, (1,), generator=dice))
        return PIL.Image.blend(PIL.Image.new("RGB", picture.size, (shade,) * 3), picture, 0.5)

    system = Oracle({})
    system.detokenizer = Detokenizer(system.tokenizer, darker)
    found = figures("reconstruct", exam_of(system))
    assert 10 < found["reconstruct/psnr"].value < 30
    assert found["reconstruct/psnr"].low < found["reconstruct/psnr"].high
    assert 0.3 < found["reconstruct/ssim"].value < 1 == pytest.approx(found["reconstruct/ssim"].ceiling)


def test_the_chain_of_ceilings_is_measured_where_it_is_offered():
    class Chained(Detokenizer):
        def through_codec(self, pictures):
            return [p.resize((32, 32)).resize(p.size) for p in pictures]

        def draw_features(self, pictures, *, generators, sampling):
            assert len(generators) == len(pictures)
            return [p.resize((16, 16)).resize(p.size) for p in pictures]

    system = Oracle({})
    system.detokenizer = Chained(system.tokenizer, lambda p, dice: p.resize((8, 8)).resize(p.size))
    found = figures("reconstruct", exam_of(system))
    chain = [found[f"reconstruct/{link}psnr"] for link in ("codec/", "features/", "")]
    assert chain[0].value > chain[1].value > chain[2].value
    assert chain[1].ceiling == chain[2].ceiling == chain[0].value


def test_retrieval_by_embeddings_where_they_are_offered(best):
    class Embedding(Tokenizer):
        names = {key(PICTURES.image(row)): named(PICTURES, row) for row in range(len(PICTURES))}

        def embed_texts(self, texts):
            numbers = [Random(text).gauss for text in texts]
            return F.normalize(torch.tensor([[gauss(0, 1) for _ in range(64)] for gauss in numbers]), dim=-1)

        def embed_images(self, images):
            return self.embed_texts([self.names[key(image.pixels)] for image in images])

    assert not list(TASKS["retrieval"](best))
    system = Oracle({})
    system.tokenizer = Embedding()
    found = figures("retrieval", exam_of(system))
    assert all(figure.value == 1 for figure in found.values()) and len(found) == 4


def test_easy_vqa_keeps_its_test_part_for_published_splits(best, tmp_path):
    for part, first in (("train", 3599), ("test", 0)):
        (tmp_path / part / "images").mkdir(parents=True)
        rows = [[f"{part}: is there a circle?", "yes", first + 1], [f"{part}: what color?", "red", first]]
        (tmp_path / part / "questions.json").write_text(json.dumps(rows))
        for _, _, image in rows:
            PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / part / "images" / f"{image}.png")
    (tmp_path / "answers.txt").write_text("red\nyes\nno\nblue\n")
    for split, expected in (("val", {"train: is there a circle?"}), ("train", {"test: is there a circle?", "test: what color?"})):  # fmt: skip
        system = Oracle({}, lambda document, dice: ("red" if "color" in document.messages[0].text else "Yes.",))
        exam = Exam(system, PICTURES, look, replace(CONFIG, split=split, n=4), easy_vqa=lambda: tmp_path)
        found = figures("vqa", exam)
        assert found["vqa/easy"].value == 1
        assert expected <= {text for text, _ in system.asked}
        assert not [text for text, _ in system.asked if text.startswith(("train", "test")) and text not in expected]


# ------------------------------------------------------------------------------------------------ text that is kept


def base_of(system):
    """The language model that the tiny system was made from."""
    return TextModel(copy.deepcopy(system.lm.llm.base))


def test_text_kept_compares_a_model_with_what_it_was_made_from():
    system = tiny.fresh("seed")
    base = base_of(system)
    exam = Exam(system, PICTURES, look, replace(CONFIG, n=3), sentences=lambda: sentences, base=lambda: base)
    found = {f.name: f for f in text_kept(exam) if isinstance(f, Figure)}
    assert found["text_kept/similarity"].value == pytest.approx(1)
    # the same but for what its new words take of the probability
    assert found["text_kept/perplexity"].value == pytest.approx(found["text_kept/perplexity"].ceiling, rel=0.5)
    with torch.no_grad():
        system.lm.llm.base.model.norm.weight.mul_(0)
    spoiled = {f.name: f for f in text_kept(exam) if isinstance(f, Figure)}
    assert spoiled["text_kept/similarity"].value < 0.9
    assert spoiled["text_kept/perplexity"].value == pytest.approx(system.grammar.vocabulary, rel=1e-3)
    assert spoiled["text_kept/perplexity"].ceiling == pytest.approx(found["text_kept/perplexity"].ceiling)
    assert len([s for s in text_kept(exam) if isinstance(s, Sample)]) == 3


def test_another_base_is_refused():
    system = tiny.system("seed")
    with pytest.raises(RebusError, match="made from another"):
        base_system(system, tiny.text_model("llama"))
    assert not list(text_kept(exam_of(system)))


def sentences(texts):
    return F.normalize(torch.tensor([[float(t.count(chr(c))) + 0.01 for c in range(32, 127)] for t in texts]), dim=-1)


# ------------------------------------------------------------------------------------------------ the whole run


def test_report_is_written_whole(best, tmp_path):
    results = evaluate(best, ["caption", "draw", "retrieval"], {"command": "rebus eval oracle"})
    assert list(results.left_out) == ["retrieval"]
    folder = write_report(results, tmp_path / "deep" / "report")
    assert sorted(p.name for p in folder.iterdir()) == ["caption.png", "draw.png", "report.json", "report.md"]
    found = json.loads((folder / "report.json").read_text())
    assert found["recipe"]["seeds"] == [0, 1] and found["recipe"]["system"] == "oracle"
    assert {f["name"] for f in found["figures"]} >= {"caption/holds_label", "draw/r_at_1"}
    assert len([s for s in found["samples"] if s["task"] == "draw"]) == CONFIG.samples
    text = (folder / "report.md").read_text()
    assert "| caption/holds_label | 1.000 |" in text and "retrieval" in text and "![draw](draw.png)" in text
    write_report(results, folder)  # a report may be replaced
    assert sorted(p.name for p in folder.parent.iterdir()) == ["report"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RebusError, match="no report"):
        write_report(results, tmp_path / "mine")


def test_nothing_is_left_of_a_report_that_fails(best, tmp_path, monkeypatch):
    results = evaluate(best, ["caption"])
    folder = write_report(results, tmp_path / "report")
    monkeypatch.setattr("rebus.evals.report.as_markdown", lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(replace(results, figures=[]), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert json.loads((folder / "report.json").read_text())["figures"]


def test_a_task_that_cannot_be_given_is_left_out_with_its_reason():
    system = Oracle({})
    system.detokenizer = None
    results = evaluate(exam_of(system), ["reconstruct"])
    assert "no detokenizer" in results.left_out["reconstruct"] and not results.figures
    with pytest.raises(RebusError, match="no task 'sing'"):
        evaluate(exam_of(system), ["sing"])


def test_values_are_what_a_training_run_logs(best):
    logged = dict(values(TASKS["caption"], best))
    assert logged["caption/holds_label"] == 1 and set(logged) == {
        "caption/holds_label",
        "caption/holds_keyword",
        "caption/cider",
    }


def test_weights_hash_depends_on_every_number():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.weight[1, 2] += 1e-6
    assert weights_hash(one) != weights_hash(other)


def test_markdown_says_what_is_not_known():
    assert number(None) == number(float("nan")) == "–"
    assert [number(v) for v in (0.12345, 12.345, 12345.6)] == ["0.123", "12.3", "12,346"]
    results = evaluate(exam_of(Oracle({})), ["codebook"])
    assert "one run" in as_markdown(results)


def test_a_tiny_system_takes_the_whole_exam(tmp_path):
    exam = Exam(
        tiny.system("seed"), PICTURES, look, replace(CONFIG, n=2, seeds=(0,), max_new_tokens=8, steps=1, codebook_n=4)
    )
    results = evaluate(exam)
    assert set(results.left_out) <= {"retrieval", "text_kept"}, results.left_out
    assert {f.name.partition("/")[0] for f in results.figures} >= {"reconstruct", "draw", "scenes", "interleaved"}
    assert next(f for f in results.figures if f.name == "interleaved/valid").value == 1
    write_report(results, tmp_path / "report")
    assert isinstance(results.recipe["weights"]["lm"]["sha256"], str)


def test_messages_without_pictures_are_blank():
    from rebus.evals.draw import BLANK, picture

    assert picture(Message("assistant", ("no",))) is BLANK
