"""SEED's language stages on a user's sets, tiny: mixture, merging, all but the embeddings, instructions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from torch import nn

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.data.coded import write_coded
from rebus.data.filters import Keep
from rebus.data.layouts import frames
from rebus.data.source_batches import SourceBatch, SourceBatches, read_places
from rebus.data.sources import open_source
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.papers.seed import tuning
from rebus.papers.seed.build import build, own_tensors
from rebus.papers.seed.mixture import INSTRUCT, PRETRAIN
from rebus.papers.seed.stages import stage3_full, stage3_pretrain, stage4_instruct
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining
from rebus.papers.seed.templates import TEMPLATES
from rebus.papers.seed.variants import TINY
from rebus.system import encode
from rebus.train import Optim, Stage, fit
from seed_pairs import write_pairs

# the tiny language model reads bytes; its head is its own, as LLaMA's is
SYSTEM = replace(TINY, language=replace(TINY.language, base={**TINY.language.base, "tie_word_embeddings": False}))
SHORT = Optim(steps=2, precision="fp32")
THIRD = stage3_pretrain.Config(system=SYSTEM, source_batch=3, lr=1e-2, row_lr=1e-2, optim=SHORT)
FULL = stage3_full.Config(system=SYSTEM, source_batch=3, lr=1e-2, optim=SHORT)
FOURTH = stage4_instruct.Config(system=SYSTEM, source_batch=3, lr=1e-2, optim=SHORT)
CODES = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SEED."""
    folder = tmp_path_factory.mktemp("saved") / "seed"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        system = build(SYSTEM, None, ("tokenizer", "lm", "detokenizer"), "cpu", torch.float32)
    parts = own_tensors(SYSTEM, system.tokenizer, system.lm.llm, system.detokenizer)
    save_system(folder, SavedSystem("seed:tiny", config_to_json(SYSTEM)), parts)
    return folder


@pytest.fixture(scope="module")
def source(tokenizer: Path) -> str:
    return tuning.read_seed_tokenizer(load_system(tokenizer)).source


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, source: str) -> Path:
    """Both mixtures' sets: pixels for some, codes for others, most left out."""
    folder = tmp_path_factory.mktemp("sets")
    write_pairs(folder / "coco", side=192)

    def lines(name: str, *records: dict) -> str:
        (folder / name).write_text("\n".join(map(json.dumps, records)) + "\n")
        return name

    coded = {"codes_of": source, "images": [CODES]}
    there = {
        "COCO": "coco",
        "MMC4": lines("mmc4.jsonl", {**coded, "texts": [None, "A cat."], "images": [CODES, None]}),
        "WebVid-10M": lines("web.jsonl", {**coded, "images": [CODES] * 6, "text": "a man rides"}),
        "Wikipedia en": lines("wiki.jsonl", {"text": "A cat is an animal. " * 200}),
        "VQAv2": lines("vqa.jsonl", {**coded, "question": "What is it?", "answer": "a cat"}),
        "VIST": lines("vist.jsonl", {**coded, "images": [CODES] * 3, "captions": ["One.", "Two.", "Three."]}),
        "JourneyDB": lines("journey.jsonl", {**coded, "text": "a cat"}, {"text": "no image"}),
    }
    for name, sources in (("pretrain.json", PRETRAIN), ("instruct.json", INSTRUCT)):
        known = [each for one in sources for each in one.sets]
        (folder / name).write_text(json.dumps({each: there.get(each) for each in known}))
    return folder


def changed(before: Mapping[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, x in module.state_dict().items() if not torch.equal(before[name], x)}


def run(stage: Stage, work: Path) -> set[str]:
    """What a run of the stage has changed."""
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    fit(stage, work / stage.name, device="cpu")
    return changed(before, stage.module)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, data: Path, tokenizer: Path) -> Path:
    """After stage 3."""
    folder = tmp_path_factory.mktemp("work")
    stage = stage3_pretrain.stage(THIRD, folder, data / "pretrain.json", tokenizer)
    parts = run(stage, folder)
    assert {
        "lm.llm.rows.input.weight_VD",
        "lm.llm.base.model.embed_tokens.weight",
        "lm.llm.base.lm_head.weight",
    } <= parts
    assert any("lora_B" in name for name in parts) and "lm.llm.base.model.norm.weight" in parts
    assert not [name for name in parts if name.startswith("tokenizer.") or "base_layer" in name]
    return folder


# ------------------------------------------------------------------------------------------------ the mixture


def test_batches_are_of_one_source_each_by_weight(data: Path) -> None:
    made = SourceBatches(PRETRAIN, read_places(data / "pretrain.json", PRETRAIN), TEMPLATES, batch=2, seed=1)
    assert set(made.sources) == {"captions", "mmc4", "webvid", "wikipedia"}
    drawn = Counter(made.mixture.place(position).source for position in range(1000))
    assert {name: round(count / 250, 2) for name, count in drawn.items()} == {
        "captions": 0.5,
        "mmc4": 2.0,
        "webvid": 0.5,
        "wikipedia": 1.0,
    }
    before = list(islice(made, 12))
    again = SourceBatches(PRETRAIN, read_places(data / "pretrain.json", PRETRAIN), TEMPLATES, batch=2, seed=1)
    again.load_state_dict({"position": 9, "skipped": {}})
    assert [batch.source.name for batch in islice(again, 3)] == [batch.source.name for batch in before[9:]]
    assert all(len(batch.documents) == 2 for batch in before if batch.source.name != "captions")


def test_a_batch_is_as_large_as_its_source_says(data: Path) -> None:
    made = SourceBatches(PRETRAIN, read_places(data / "pretrain.json", PRETRAIN), TEMPLATES)
    batch = next(batch for batch in made if batch.source.name == "wikipedia")
    assert len(batch.documents) == 26
    captions = next(batch for batch in made if batch.source.name == "captions")
    # a quarter of the pairs have a similarity below 0.25
    assert len(captions.documents) == 116 - made.skipped["captions"] and made.skipped["captions"] == 29
    first = Counter(isinstance(document.messages[0].content[0], Image) for document in captions.documents)
    assert min(first.values()) > 25  # either comes first


def test_sets_that_are_not_named_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "sets.json"
    file.write_text('{"CC3M": "cc3m", "COCO": null}')
    with pytest.raises(RebusError, match="names 2 sets, but not Unsplash, LAION-COCO, MMC4, OBELICS, WebVid-10M, Wiki"):
        read_places(file, PRETRAIN)
    file.write_text('{"Flickr": "f"}')
    with pytest.raises(RebusError, match="'Flickr' is in no source"):
        read_places(file, PRETRAIN)
    file.write_text(json.dumps({name: None for one in PRETRAIN for name in one.sets}))
    with pytest.raises(RebusError, match="leaves every set out"):
        read_places(file, PRETRAIN)
    file.write_text("[]")
    with pytest.raises(RebusError, match="no object of sets and paths"):
        read_places(file, PRETRAIN)


def test_every_source_has_a_template_and_what_it_lacks_is_skipped(data: Path) -> None:
    assert {source.template for source in PRETRAIN + INSTRUCT} <= TEMPLATES.keys()
    made = SourceBatches(INSTRUCT, read_places(data / "instruct.json", INSTRUCT), TEMPLATES, batch=4)
    drawn = next(batch for batch in made if batch.source.name == "journeydb")
    assert len(drawn.documents) == 2 and made.skipped["journeydb"] == 2  # every other record has no image


def test_frames_are_spread_over_a_video() -> None:
    images = [Image(PIL.Image.new("RGB", (n, 1))) for n in range(1, 11)]
    assert [image.pixels.width for image in frames(images, 4)] == [1, 4, 7, 10]
    assert frames(images[:3], 4) == tuple(images[:3]) and frames(images, 1) == (images[0],)


# ------------------------------------------------------------------------------------------------ stages


def test_what_is_learned_follows_the_source(data: Path, tokenizer: Path) -> None:
    stage = stage3_pretrain.stage(THIRD, data, data / "pretrain.json", tokenizer)
    assert isinstance(stage.module, tuning.MixtureTraining)
    of = {source.name: source for source in PRETRAIN + INSTRUCT}
    image = Image(PIL.Image.new("RGB", (9, 9)))
    (image,) = stage.module.tokenizer.encode([image], {"understanding"})
    whole = Document((user(image), assistant("a cat")))
    for name, learned in (("captions", 1 + 10 + 5 + 1), ("webvid", 5 + 1)):
        loss = "reply" if name == "webvid" else "all"
        assert sum(stage.module.row(whole, of[name], loss).target) == learned
    long = Document((assistant("a cat " * 100),))
    assert len(stage.module.row(long, of["captions"], "all")) == 200


def test_pixels_and_their_codes_are_the_same_to_learn_from(data: Path, tokenizer: Path) -> None:
    stage = stage3_pretrain.stage(THIRD, data, data / "pretrain.json", tokenizer)
    module = stage.module.eval()
    batch = next(batch for batch in stage.data if batch.source.name == "captions")
    coded = [
        document.map_images(
            lambda image, _: Image(generated=module.tokenizer.encode([image], {"generation"})[0].generated)
        )
        for document in batch.documents
    ]
    with torch.no_grad():
        losses = [module(SourceBatch(documents, batch.source)).total for documents in (batch.documents, coded)]
    torch.testing.assert_close(*losses)


def test_a_set_is_written_as_codes_and_read_again(data: Path, tokenizer: Path, tmp_path: Path) -> None:
    seed = tuning.read_seed_tokenizer(load_system(tokenizer))
    pictures = open_source(data / "coco", "both", Keep(similarity=0.25))
    assert write_coded(pictures, seed, tmp_path / "coco.jsonl", batch=5) == (12, 4)
    coded = open_source(tmp_path / "coco.jsonl")
    readable = [pictures[number] for number in range(4, 16)]
    for before, after in zip(readable, [coded[n] for n in range(len(coded))], strict=True):
        assert [message.text for message in before.messages] == [message.text for message in after.messages]
        (image,), (codes,) = seed.encode(before.images, {"generation"}), after.images
        assert codes.pixels is None and codes.understood.source == seed.source
        assert torch.equal(codes.generated.ids_N, image.generated.ids_N)
    assert not list(tmp_path.glob(".*"))


def test_merging_changes_nothing_and_all_but_the_embeddings_is_tuned(work: Path, data: Path, tokenizer: Path) -> None:
    given = tuning.parts(SYSTEM, data / "pretrain.json", tokenizer)
    apart = tuning.fresh(given, "plain").eval()
    tuning.lay(apart, work / tuning.PRETRAINED)
    stage = stage3_full.stage(FULL, work, data / "pretrain.json", tokenizer)
    batch = next(iter(stage.data))
    stage.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(stage.module(batch).total, apart(batch).total, atol=1e-5, rtol=1e-5)
    words = {name for name, _ in stage.module.named_parameters() if "embed_tokens" in name}
    parts = run(stage, work)
    language = {name for name, _ in stage.module.named_parameters() if name.startswith("lm.")}
    assert words and parts == language - words
    assert stage.module.lm.llm.rows is None and not [name for name in parts if "lora" in name]


def test_instructions_are_learned_by_new_adapters_on_what_was_tuned(work: Path, data: Path, tokenizer: Path) -> None:
    if not (work / tuning.TUNED).exists():
        run(stage3_full.stage(FULL, work, data / "pretrain.json", tokenizer), work)
    stage = stage4_instruct.stage(FOURTH, work, data / "instruct.json", tokenizer)
    tuned = load_file(work / tuning.TUNED / "weights.safetensors")
    held = stage.module.state_dict()
    query = "lm.llm.base.model.layers.0.self_attn.q_proj"
    assert torch.equal(held[f"{query}.base_layer.weight"], tuned[f"{query}.weight"])
    parts = run(stage, work)
    assert any("lora_B" in name for name in parts) and "lm.llm.base.lm_head.weight" in parts
    assert not [name for name in parts if "base_layer" in name or name.startswith("tokenizer.")]
    tensors, about = tuning.merged_tensors(stage.module)
    assert about["vocab_size"] == len(tensors["lm_head.weight"]) == 262 + 66
    assert not [name for name in tensors if "lora" in name]


def test_weights_that_are_missing_or_of_another_model(work: Path, data: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="There are no weights in"):
        stage3_full.stage(FULL, tmp_path, data / "pretrain.json", tokenizer)
    with pytest.raises(RebusError, match="no tokenizer was named"):
        stage3_pretrain.stage(THIRD, tmp_path, data / "pretrain.json")
    other = replace(SYSTEM, language=replace(SYSTEM.language, lora_rank=4))
    with pytest.raises(RebusError, match="are of another model"):
        stage3_full.stage(replace(FULL, system=other), work, data / "pretrain.json", tokenizer)


def test_documents_in_rows_of_two_lengths_lose_as_in_one():
    system = tiny.fresh("seed")
    mixed = [d for d in tiny.documents() if any(m.role == "assistant" for m in d.messages)]
    mixed += [Document((user("A red car."), assistant("Yes.")))]

    def lost(pack: int | None) -> torch.Tensor:
        module = LanguageTraining(system.lm, system.tokenizer, system.grammar, template="chat", loss="reply", pack=pack)
        return module(mixed).total

    lengths = [len(system.grammar.serialize(d)) for d in encode(system.tokenizer, mixed, replies="generation")]
    assert min(lengths) <= 70 < max(lengths)
    with torch.no_grad():
        torch.testing.assert_close(lost(70), lost(None), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lost(500), lost(None), atol=1e-5, rtol=1e-5)
