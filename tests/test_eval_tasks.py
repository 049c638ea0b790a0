"""Every task on systems of which the answer is known: a perfect one reaches the ceiling, a deaf one is at chance.

The systems are oracles over the small set of pictures; no weights are involved, except in the test of kept text.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from tests.oracle import (
    CONFIG,
    PICTURES,
    Detokenizer,
    Oracle,
    Tokenizer,
    deaf,
    exam_of,
    figures,
    key,
    look,
)

from rebus.data.pictures import plain_rows
from rebus.data.wording import named
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.evals.exam import Exam, generator
from rebus.evals.nearest import choose
from rebus.evals.run import TASKS
from rebus.system import ReadBack

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


def test_replies_are_drawn_from_the_likeliest_words_as_asked(best):
    seen = []

    class Noting(Oracle):
        def generate(self, documents, **told):
            seen.append(told["sampling"])
            return super().generate(documents, **told)

    exam = replace(best, config=replace(best.config, temperature=0.9, top_p=0.25), system=Noting({}))
    figures("caption", exam)
    assert {(sampling.temperature, sampling.top_p) for sampling in seen} == {(0.9, 0.25)}


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


def test_guidance_and_choice_among_several_are_for_drawings_alone():
    class Watched(Oracle):
        told: list = []

        def generate(self, documents, *, modality, sampling, **rest):
            self.told.append((modality, sampling.guidance, sampling.best_of))
            assert isinstance(rest["scorer"], ReadBack)
            return super().generate(documents, modality=modality, sampling=sampling, **rest)

    exam = exam_of(Watched({}))
    exam = replace(exam, config=replace(exam.config, guidance=1.5, best_of=4))
    document = Document((user("A thing?"),))
    for modality in ("text", "image", "any"):
        exam.replies("things", [document], modality, 0)
    assert Watched.told == [("text", 1.0, 1), ("image", 1.5, 4), ("any", 1.0, 1)]


def test_retrieval_by_embeddings_where_they_are_offered(best):
    class Embedding(Tokenizer):
        embeds = True
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
