"""SEED-X's language stages on the embedded kind of data, small: what learns, what is read and what drawn, and that a batch
is the mean of its documents."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny

from rebus.document import Document, assistant, user
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig
from rebus.lm import Losses
from rebus.papers.seed_x import embedded
from rebus.papers.seed_x.language_training import LanguageTraining
from rebus.papers.seed_x.memory import Memory
from rebus.papers.seed_x.stages import instruct, pretrain
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.train import Optim, fit
from rebus.train.schedule import rate
from seed_x_mini import INSTRUCT, PRETRAIN, SYSTEM, different, picture, write_all, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seed_x")
    write_all(place)
    return place


def module(**settings: object) -> LanguageTraining:
    """A model whose words and features depend on everything that it reads."""
    generator = tiny.generator(0)
    tokenizer = SeedXTokenizer(SYSTEM.tokenizer, generator=generator)
    made = pretrain.fresh(replace(PRETRAIN, one_view=0.0, **settings), tokenizer, None, generator)
    tiny.liven(made.lm)
    return made.eval()


# ------------------------------------------------------------------------------------------------ what learns


def test_the_papers_numbers_are_the_defaults() -> None:
    one, two = pretrain.Config(), instruct.Config()
    assert one.lr == two.lr == 1e-4 and one.system.language.lora == two.lora  # type: ignore[union-attr]
    assert (two.lora.rank, two.lora.alpha, two.lora.dropout, len(two.lora.targets)) == (32, 32, 0.05, 7)
    assert (one.optim.steps, two.optim.steps) == (100_000, 20_000)
    for optim in (one.optim, two.optim):
        assert (optim.warmup, optim.min_lr_ratio, optim.betas, optim.eps) == (500, 0.05, (0.9, 0.98), 1e-6)
        assert (optim.weight_decay, optim.accumulate, optim.clip, optim.schedule) == (0.05, 2, 1.0, "cosine")
    assert one.system.projectors.image_weight == 6 and one.system.projectors.regression == "mse"


def test_pretraining_trains_adapters_projectors_rows_and_norms(folder: Path) -> None:
    stage = pretrain.stage(PRETRAIN, folder / "work")
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    result = fit(stage, folder / "work" / stage.name, device="cpu")
    names = {name for name, x in stage.module.state_dict().items() if not torch.equal(before[name], x)}
    assert {"lm.llm.rows.input.weight_VD", "lm.llm.rows.output.weight_VD", "lm.llm.base.model.norm.weight"} <= names
    assert "lm.input_projector.position_4D" in names and any("output_projector" in name for name in names)
    base = {name for name in names if name.startswith("lm.llm.base.")}
    assert all("lora_" in name or "norm" in name for name in base) and any("lora_B" in name for name in base)
    assert not [name for name in names if name.startswith("tokenizer.")]
    assert {"train/caption", "val/draw", "val/draw features", "val/scene_boxes"} <= result.evals.keys()
    assert all(math.isfinite(loss) for loss in result.losses)


def test_a_gate_watches_captions_and_plain_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebus.evals.battery.ITEMS", 4)
    config = replace(PRETRAIN, gates=GateConfig(every=1, perplexity=100.0, chosen=1.0))
    stage = pretrain.stage(config, folder / "work")
    result = fit(stage, folder / "work" / "gated", device="cpu")
    assert result.fell is None and 0 <= result.evals["gate/caption/chosen"] <= 1
    assert result.evals["gate/text_kept/perplexity"] > 1 and "gate/draw/chosen" not in result.evals
    base = write_base(folder)
    tuned = instruct.stage(replace(INSTRUCT, gates=GateConfig(every=1)), folder / "work", base=base)
    assert dict(tuned.gates[0].battery()).keys() == {"caption/chosen", "text_kept/perplexity"}


def test_every_speciality_learns_from_its_own_documents(folder: Path) -> None:
    base = write_base(folder)
    for name in ("chat", "edit", "story", "layout", "try_on"):
        stage = instruct.stage(replace(INSTRUCT, speciality=name), folder / "work", base=base)
        losses = stage.module(next(iter(stage.data)))
        assert torch.isfinite(losses.total)
        assert losses.image is not None or name in ("chat", "layout")
        speciality = stage.config["speciality"]
        assert (speciality.name, speciality.decoder == "second") == (name, name in ("edit", "try_on"))
        assert len(stage.module.tokenizer.grids) == (8 if name in ("chat", "layout") else 1)
        assert set(embedded.INSTRUCT[name]) and stage.name == f"seed_x.instruct.{name}"


def test_a_tuned_base_begins_as_the_base(folder: Path) -> None:
    base = write_base(folder)
    tuned = instruct.begin(INSTRUCT, base)[0].eval()
    again = instruct.begin(replace(INSTRUCT, lora=replace(INSTRUCT.lora, rank=1), seed=1), base)[0].eval()
    document = [different()[1]]
    torch.testing.assert_close(tuned(document).text, again(document).text)
    assert [entry.pattern for entry in instruct.stage(INSTRUCT, folder / "work", base=base).trainable] == [
        "lm.llm.*lora_*",
        "lm.input_projector.words.*",
        "lm.output_projector.words.*",
        "lm.input_projector.*",
        "lm.output_projector.*",
        "lm.llm.base.*norm*",
    ]


def test_locations_begin_alike_to_their_neighbours() -> None:
    rows = module(locations="smooth").lm.llm.rows.input.table()
    first = SYSTEM.grammar.first_location - 262
    places = rows[first : first + SYSTEM.grammar.locations]
    apart = torch.cdist(places, places)
    near, far = apart.diagonal(1).mean(), apart.diagonal(16).mean()
    assert near < 0.6 * far
    plain = module(locations="mean").lm.llm.rows.input.table()[first : first + SYSTEM.grammar.locations]
    assert torch.cdist(plain, plain).max() < 1e-3


def test_the_published_schedule_rises_again() -> None:
    ours = Optim(steps=100, warmup=10, min_lr_ratio=0.05, accumulate=2)
    theirs = replace(ours, schedule="per_batch_cosine")
    fixed, published = ([rate(optim, step) for step in range(100)] for optim in (ours, theirs))
    assert fixed[10:] == sorted(fixed[10:], reverse=True) and fixed[-1] < 0.06
    assert min(published) == pytest.approx(0.05, abs=1e-3) and published.index(min(published)) == 50
    assert published[95] > 0.9 and published[5] == fixed[9] == 1.0
    assert rate(replace(theirs, accumulate=1), 60) == rate(replace(ours, accumulate=1), 60)


# ------------------------------------------------------------------------------------------------ what is read and what drawn


def test_images_of_the_last_reply_are_drawn_and_all_others_read() -> None:
    made = module()
    words = [made.words(document) for document in made.prepared(different())]
    assert [len(w.input_spans) for w in words] == [0, 3, 0, 6, 2]  # a wide one is two tiles and the whole
    assert [len(w.output_spans) for w in words] == [0, 0, 1, 1, 1]
    last = words[4]
    assert last.output_spans[0][0] > last.input_spans[-1][1]


def test_pictures_are_read_whole_as_often_as_asked() -> None:
    made = module()
    document = Document((user(picture(size=(128, 128)), "What?"), assistant("It.")))

    def views(share: float) -> list[int]:
        made.one_view = share
        return [len(made.words(d).input_spans) for d in made.prepared([document] * 40)]

    assert views(0.85) == [5] * 40  # only while training
    made.train()
    some = views(0.85)
    assert set(some) == {1, 5} and 26 <= some.count(1) <= 40
    assert views(0.0) == [5] * 40 and views(1.0) == [1] * 40


def test_features_seen_before_are_those_made_now() -> None:
    tokenizer = SeedXTokenizer(SYSTEM.tokenizer, generator=tiny.generator(0)).eval()
    memory, grids = Memory(tokenizer, 2), SYSTEM.tokenizer.grids
    images = [picture(), picture(size=(128, 64)), picture((9, 9, 9))]
    first = memory.encode(images, "understanding", grids)
    assert (memory.asked, memory.found) == (3, 0) and len(memory.held) == 2
    again = memory.encode(images[1:2], "understanding", grids)
    assert memory.found == 1
    direct = tokenizer.encode(images, {"understanding"})
    for one, two in zip(first, direct, strict=True):
        torch.testing.assert_close(one.understood.x_WNC, two.understood.x_WNC, atol=2e-3, rtol=2e-3)
        assert torch.equal(one.understood.position_W2, two.understood.position_W2)
    assert torch.equal(again[0].understood.x_WNC, first[1].understood.x_WNC)
    assert (
        memory.encode(images[1:2], "understanding", ())[0].understood.x_WNC.shape[0] == 1
    )  # other grids, other features
    assert tokenizer.grids == grids
    with pytest.raises(RebusError, match="has no pixels"):
        memory.encode([replace(images[0], pixels=None, generated=direct[0].understood)], "understanding", grids)


# ------------------------------------------------------------------------------------------------ batches


def losses_of(made: LanguageTraining, documents: list[Document]) -> Losses:
    with torch.no_grad():
        return made(documents)


def test_a_batch_of_any_documents_is_the_mean_of_its_words_and_images() -> None:
    made = module()
    documents = different()
    made.pack = None
    padded = losses_of(made, documents)
    made.pack = 48
    packed = losses_of(made, documents)
    alone = [losses_of(made, [document]) for document in documents]
    words = [sum(made.words(d).target) for d in made.prepared(documents)]
    images = [len(made.words(d).outputs) for d in made.prepared(documents)]
    text = sum(n * loss.text for n, loss in zip(words, alone, strict=True)) / sum(words)
    image = sum(loss.image for loss in alone if loss.image is not None) / sum(images)
    for batch in (padded, packed):
        torch.testing.assert_close(batch.text, text)
        torch.testing.assert_close(batch.image, image)
        torch.testing.assert_close(batch.total, text + 6 * image)
    reversed_ = losses_of(made, documents[::-1])
    torch.testing.assert_close(reversed_.total, padded.total)


def taught(parameter: torch.Tensor) -> bool:
    """A projector that a batch does not need runs on a dummy times zero: then its gradient is there, and zero."""
    return parameter.grad is not None and bool(parameter.grad.any())


def test_pictures_that_are_drawn_teach_the_way_out_and_those_that_are_read_the_way_in() -> None:
    made = module(in_full=())
    made.train()
    for document, reads, draws in zip(different()[1:4], (True, False, True), (False, True, True), strict=True):
        made.zero_grad()
        for parameter in made.lm.parameters():
            parameter.requires_grad_(True)
        made([document]).total.backward()
        assert taught(made.lm.input_projector.position_4D) == reads
        assert taught(made.lm.output_projector.resampler.queries_QC) == draws
