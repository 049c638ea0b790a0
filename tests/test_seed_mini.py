"""seed:mini's stages at tiny size: codes that add up to the image embedding, from the first stage to a system that draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tests.tiny import generator

from lavit_mini import write_work
from rebus.apps.memory import note, recall
from rebus.data.pictures import load_pictures
from rebus.data.wording import style_name
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.mini.named_stage import read_stage
from rebus.mini.pack import pack as pack_shared
from rebus.mini.saying import vector_states
from rebus.mini.wishes import LowerStates, upper
from rebus.nn.image_codes import ImageCodesConfig
from rebus.nn.running_sums import SummedWords
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.seed import pack as packing
from rebus.papers.seed.bank import bank_codes, code_starts, named_codes
from rebus.papers.seed.language import LanguageConfig
from rebus.papers.seed.pack import pack, unpack
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.space import SentenceSpace
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.stages import (
    detokenizer,
    drawing,
    naming,
    stage1_qformer,
    stage2_codebook,
    stage3_pretrain,
    stage4_instruct,
)
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import MINI, MINI_TOKENIZER, TINY
from rebus.sampling import Sampling
from rebus.system import load
from rebus.train import Optim, Stage, fit
from rebus.visual import ImageSampling

SHORT = Optim(steps=1, precision="fp32")
TOKENIZER = replace(
    MINI_TOKENIZER,
    qformer=QFormerConfig(queries=4, width=32, depth=2, heads=2, mlp_hidden=64, source_width=192, dropout=0.0),
    codebook_size=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_hidden=64,
    head_widths=(8, 4),
    sentence_width=4,
)
SYSTEM = replace(
    MINI,
    tokenizer=TOKENIZER,
    grammar=mini(262, 16, 4, per_query=True),
    language=LanguageConfig(
        base=TINY.language.base,
        new_words=18,
        lora_rank=2,
        lora_alpha=4,
        summed=SummedWords(262, 16),
        codes=ImageCodesConfig(
            first=262,
            begin=278,
            codes=16,
            places=4,
            width=TOKENIZER.code_width,
            reads=WordReadingsConfig(grid=1, words=2, rank=4, names=200),
            draws=WordDrawingsConfig(words=3, rank=4, hidden=8, depth=1, choices=200, apart=2),
        ),
    ),
    detokenizer=replace(MINI.detokenizer, steps=2, written=2),
)
TUNED = {"system": SYSTEM, "batch": 2, "base_dtype": "fp32", "optim": SHORT, "lr": 1e-2, "row_lr": 1e-2}
CHAIN = {
    stage1_qformer: {"tokenizer": TOKENIZER, "batch": 4, "optim": SHORT},
    stage2_codebook: {"tokenizer": TOKENIZER, "batch": 4, "optim": SHORT},
    detokenizer: {"tokenizer": TOKENIZER, "batch": 2, "steps": 1},
    naming: {"system": SYSTEM, "copies": 2, "batch": 2, "optim": SHORT},
    stage3_pretrain: TUNED | {"mix": {"caption": 0.5, "draw": 0.5}},
    stage4_instruct: TUNED | {"mix": {"describe": 0.5, "request": 0.5}, "replies": 0.0},
    drawing: {
        "system": SYSTEM,
        "copies": 2,
        "batch": 2,
        "named": 1,
        "first": 3,
        "last": 2,
        "depth": 1,
        "optim": SHORT,
    },
}


LOOKED_AT = (stage1_qformer, stage2_codebook, detokenizer, naming, drawing)
"""Stages whose evaluations are run."""


@dataclass
class Trained:
    """A work folder after all stages, and these."""

    work: Path
    stages: dict[str, Stage]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    work, stages = write_work(tmp_path_factory.mktemp("work")), {}
    for module, told in CHAIN.items():
        stage = module.stage(replace(module.CONFIGS["mini"], **told), work)
        stage.evals = stage.evals if module in LOOKED_AT else []
        stages[stage.name] = stage
        fit(stage, work / stage.name, device="cpu")
    return Trained(work, stages)


def test_codes_start_from_the_image_embedding(trained: Trained) -> None:
    data, tokenizer = Frozen(trained.work), trained.stages["seed.detokenizer"].module.detokenizer.codes
    some = np.arange(3)
    (embedding,) = data.rows("train", some, "embeddings")
    start = code_starts(data, "train", some, tokenizer)
    assert embedding.shape == (3, data.vision.config.embedding)
    torch.testing.assert_close(start, embedding, atol=2e-2, rtol=2e-2)  # in half precision
    ids = torch.from_numpy(bank_codes(data, "train", tokenizer)[some].copy())
    assert (ids // 4 == torch.arange(4)).all()


def test_what_stage_1_learned_of_texts_stays_for_retrieval(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = (trained.stages[f"seed.{name}"].module for name in ("stage1_qformer", "detokenizer"))
    space, kept = first.tokenizer.space, last.detokenizer.codes.space
    assert isinstance(space, SentenceSpace) and not [n for n, _ in first.named_parameters() if n.startswith("heads")]
    torch.testing.assert_close(kept.state_dict(), space.state_dict())
    monkeypatch.setattr("rebus.papers.seed.space.sentence_vectors", lambda texts: np.eye(4)[[len(t) for t in texts]])
    tokenizer = last.detokenizer.codes
    image_IC = tokenizer.embed_images([Image(PIL.Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")])
    text_IC = tokenizer.embed_texts(["a", "bc", "d"])
    assert image_IC.shape == (2, 256) and text_IC.shape == (3, 256)
    for x in (image_IC, text_IC):
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(len(x)))
    torch.testing.assert_close(text_IC[0], text_IC[2])
    without = SeedTokenizer(replace(TOKENIZER, contrast_width=0))
    assert tokenizer.embeds and not without.embeds
    with pytest.raises(RebusError, match="hold no space in which images meet texts"):
        without.embed_texts(["a"])


def test_stage_3_begins_as_naming_left_it(trained: Trained) -> None:
    named = stage3_pretrain.language_weights(trained.work / "seed.naming")
    assert {name.partition("layers.")[2][:1] for name in named} == {"", "0", "1"}
    assert {"codes.reads.names_QR", "codes.draws.out.weight"} <= set(named)
    stage = stage3_pretrain.stage(replace(stage3_pretrain.CONFIGS["mini"], **CHAIN[stage3_pretrain]), trained.work)
    begun = stage.module.lm.llm.state_dict()
    assert all(torch.equal(begun[name], x) for name, x in named.items())
    with pytest.raises(
        RebusError, match=r"There is no .*nowhere/weights\.safetensors.*Run `rebus train nowhere` first"
    ):
        read_stage(stage.module, trained.work / "nowhere")
    with pytest.raises(RebusError, match=r"are of another model: \d+ of their \d+ tensors do not fit"):
        read_stage(torch.nn.Linear(2, 2), trained.work / "seed.naming")
    rates = {entry.pattern: entry.lr for entry in stage.trainable}
    # the first pattern that fits decides
    assert list(rates)[:2] == ["lm.llm.codes.draws.*_K*", "lm.llm.codes.reads.*"]
    assert list(rates)[5:7] == ["lm.llm.rows.input.*", "lm.llm.rows.*"]
    assert rates["lm.llm.rows.input.*"] == 1e-4 and rates["lm.llm.rows.*"] == TUNED["row_lr"]


def test_of_an_image_that_is_named_the_last_codes_alone_are_there(trained: Trained) -> None:
    module = trained.stages["seed.naming"].module.naming
    llm, ids = trained.stages["seed.naming"].module.lm.llm, torch.tensor([[0, 4, 8, 12], [1, 5, 9, 13]])
    whole, places = naming.image_vectors(llm, module.before_B, ids + 262, 4)
    some, kept = naming.image_vectors(llm, module.before_B, ids + 262, 2)
    before = len(module.before_B)
    assert kept.tolist() == [*range(before), before + 2, before + 3]
    torch.testing.assert_close(some, whole[:, kept])  # sums are of all codes, also of those that are not there
    assert places.tolist() == list(range(before + 4))


def test_of_a_wish_the_words_are_learned_that_its_picture_is_drawn_from(trained: Trained) -> None:
    work, module = trained.work, trained.stages["seed.drawing"].module
    data, pictures, config = Frozen(work), load_pictures(work / "emoji"), module.config
    tokenizer = trained.stages["seed.detokenizer"].module.detokenizer.codes
    grammar, llm = trained.stages["seed.stage4_instruct"].module.grammar, module.lm.llm
    ids_IN, name_I, names = named_codes(data, tokenizer, "train", copies=2)
    wishes = drawing.CodeWishes(pictures, "train", ids_IN, grammar, config.wordings)
    assert len(wishes) == config.wordings * len(wishes.rows) and 2 * len(wishes.rows) == len(ids_IN)
    rows = [wishes.words(number) for number in range(len(wishes))]
    states = LowerStates(llm, rows, 1, work / "cache" / "wishes.npy")
    said_IK, codes = wishes.said(grammar.text, 3), llm.codes
    for number in (0, len(wishes) - 1):
        row, words = wishes.rows[number % len(wishes.rows)], wishes.words(number)
        assert words[-1] == grammar.config.begin_image and style_name(pictures, row) in wishes.text(number)
        # the words before the picture are those that a user's wish becomes
        assert words[:-1] == grammar.serialize(Document((user(wishes.text(number)),)), reply="image").ids
        # the lower layers' states and the upper layers behind them are the whole model
        ids, places = torch.tensor([words]), torch.arange(len(words))
        hidden = vector_states(upper(llm, 1), states[number][None].to(llm.dtype), places)
        whole = vector_states(llm, llm.embed(ids), places)
        assert (hidden - whole).norm() < 0.05 * whole.norm()  # in half precision
        name = grammar.text.encode(f" {pictures.concept_label[row]}..")[:2]
        style = grammar.text.encode(f" {style_name(pictures, row)}")[:1]
        assert said_IK[number % len(wishes.rows)].tolist() == [*name, *style]
    assert pictures.label[wishes.rows[0]] in wishes.text(0) and wishes.text(0) != wishes.text(len(wishes.rows))
    # what the first codes cost is what they cost in the whole document
    one = torch.tensor([0])
    found = module([states[0]], codes.draws.places(said_IK[one]), ids_IN[one], ids_IN[one], name_I[one])
    ids = torch.tensor([[*rows[0], *(ids_IN[0] + grammar.config.first_code).tolist()]])
    hidden = vector_states(llm, llm.embed(ids), torch.arange(ids.shape[1]))
    begin = len(rows[0]) - 1
    hidden[:, begin + 1 :] = 0  # what states within the image would add is not learned here
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, begin : begin + 3] = True
    with torch.no_grad():
        kept, codes.beside.weight.data = codes.beside.weight.data, torch.zeros_like(codes.beside.weight)
        logits_NV = codes.next_logits(hidden, ids, where)
        codes.beside.weight.data = kept
    lost = [-logits_NV[n, 4 * n : 4 * n + 4].log_softmax(0)[ids_IN[0, n] - 4 * n] for n in range(3)]
    torch.testing.assert_close(found.parts["drawing"], torch.stack(lost).mean(), atol=0.1, rtol=0.1)
    # one layer of two has learned, and of what is known of codes that which says words
    moved = stage3_pretrain.language_weights(work / "seed.drawing")
    assert {name.partition("layers.")[2][:1] for name in moved if "lora_" in name} == {"1"}
    assert {"codes.draws.up_KRD", "codes.draws.out.weight", "codes.sharpness"} <= set(moved)
    assert not any(name.startswith("rows.") for name in moved)
    assert moved["codes.beside.weight"].abs().max() < 1e-4  # it begins anew
    for told, message in (
        ({"first": 5}, "Of an image's 4 codes the first 5"),
        ({"depth": 2}, "The first 2 of 2 layers"),
        ({"named": 0}, "A step names 0 pictures"),
        ({"last": 0}, "the last 0 words or vectors"),
        ({"system": replace(SYSTEM, language=replace(SYSTEM.language, codes=None))}, "by the rows of its vocabulary"),
    ):
        with pytest.raises(RebusError, match=message):
            drawing.stage(replace(drawing.CONFIGS["mini"], **CHAIN[drawing] | told), work)


def test_the_language_model_is_told_of_places(trained: Trained) -> None:
    for name in ("seed.stage3_pretrain", "seed.stage4_instruct"):
        lm = trained.stages[name].module.lm
        assert (lm.places.first, lm.places.places, lm.places.each) == (0, 4, 4)
        weights = lm.word_weights_V[262:278]
        assert weights[0] / weights[15] == pytest.approx(6) and weights.mean() == pytest.approx(1)
        words = torch.cat([lm.word_weights_V[:262], lm.word_weights_V[278:]])
        assert (words == (3 if name.endswith("instruct") else 1)).all()
    same = stage3_pretrain.code_weights(SYSTEM.grammar, 280, 1.0, 2.0)
    assert same.sum() == 16 + 2 * 264 and (same[262:278] == 1).all()
    with pytest.raises(RebusError, match=r"must be above 0, but they are 1\.0 and 0\.0"):
        stage3_pretrain.code_weights(SYSTEM.grammar, 280, 1.0, 0.0)


def test_the_system_is_packed_loaded_and_unpacked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.VARIANTS, "mini", SYSTEM)
    pack_shared(trained.work, tmp_path / "mini")
    saved = pack(trained.work, tmp_path / "seed-mini")
    left_out = ("visual_encoder.", "code_start.", "embedding_decoder.")
    assert not [name for name in saved.tensors("tokenizer") if name.startswith(left_out)]
    system = load("seed:mini", weights=tmp_path / "seed-mini", dtype=torch.float32)
    picture = Image(PIL.Image.linear_gradient("L").convert("RGB"))
    (read,) = system.tokenizer.encode([picture], {"generation"})
    theirs = trained.stages["seed.detokenizer"].module.detokenizer.codes
    pixels = theirs.pixels([picture])
    start = theirs.start(theirs.features(pixels))
    torch.testing.assert_close(system.tokenizer.start(system.tokenizer.features(pixels)), start, atol=2e-2, rtol=2e-2)
    with pytest.raises(RebusError, match="saved without what rebuilds causal embeddings"):
        system.tokenizer.reconstruct_embeddings(torch.zeros(1, 4, 512))
    asked = Document((user(picture, "a ramp"),))
    (said,) = system.generate([asked], modality="image", sampling=Sampling(max_new_tokens=12))
    assert said.images[0].pixels.size == (64, 64)
    assert (said.images[0].generated.ids_N // 4 == torch.arange(4)).all()
    # of codes that the language model wrote the first alone are drawn from, and the picture knows it
    assert said.images[0].drawn.sampling.codes == SYSTEM.detokenizer.written == 2
    asked_for = Sampling(max_new_tokens=12, image=ImageSampling(codes=3))
    (said,) = system.generate([asked], modality="image", sampling=asked_for)
    assert said.images[0].drawn.sampling.codes == 3
    streamed = [
        p for p in system.stream(asked, modality="image", sampling=Sampling(max_new_tokens=12)) if isinstance(p, Image)
    ]
    assert streamed[0].drawn.sampling.codes == 2
    assert recall(note(streamed[0]), streamed[0].pixels)[1].sampling.codes == 2
    (drawn,) = (p for p in system.draw([read], [None], [generator(0)], ImageSampling()) if isinstance(p, Image))
    assert drawn.pixels.size == (64, 64)

    again = tmp_path / "again"
    unpack(tmp_path / "seed-mini", again)
    for name in ("mini.vision", "mini.vae", "mini.denoiser", "bank", "cache", "emoji"):
        (again / name).symlink_to(trained.work / name)
    for module in (stage2_codebook, stage4_instruct):  # training goes on from there
        stage = module.stage(replace(module.CONFIGS["mini"], **CHAIN[module]), again)
        losses = stage.module([Document((user("a"), assistant("b")))]) if module is stage4_instruct else None
        assert losses is None or torch.isfinite(losses.total)


def test_an_image_is_drawn_from_its_first_codes(trained: Trained) -> None:
    detokenizer = trained.stages["seed.detokenizer"].module.detokenizer.eval()
    tokenizer = detokenizer.codes
    ids = torch.tensor([[0, 4, 8, 12], [0, 4, 9, 13], [0, 5, 8, 12]])
    x_ID = tokenizer.image_embedding(ids, 2)
    torch.testing.assert_close(x_ID[0], x_ID[1], atol=0, rtol=0)  # what comes behind is not looked at
    assert not torch.equal(x_ID[0], x_ID[2])
    torch.testing.assert_close(tokenizer.image_embedding(ids, 4), tokenizer.image_embedding(ids), atol=0, rtol=0)
    sums = tokenizer.quantizer.decode(ids)
    torch.testing.assert_close(x_ID[0], tokenizer.embed_codes(torch.stack([sums[0, 0], *[sums[0, 1]] * 3])[None])[0])
    for first in (0, 5):
        with pytest.raises(
            RebusError, match=f"An image of 4 codes was to be drawn from its first {first}. Give 1 to 4"
        ):
            tokenizer.image_embedding(ids, first)
    alone = SeedTokenizer(replace(TOKENIZER, codebook="per_query", start_per_patch=0, start_contrast=0))
    with pytest.raises(RebusError, match="first 2. This model's codes do not add up"):
        alone.image_embedding(ids, 2)


def test_a_codebook_whose_entries_stand_alone_is_not_cut(trained: Trained) -> None:
    alone = replace(TOKENIZER, codebook="per_query")
    with pytest.raises(RebusError, match="Only codes that add up can be dropped from the end, but nested_dropout=0.25"):
        stage2_codebook.CodebookTraining(replace(stage2_codebook.CONFIGS["mini"], tokenizer=alone))


def test_first_codes_may_look_for_what_names_have_in_common(trained: Trained, tmp_path: Path) -> None:
    told = replace(TOKENIZER, meaning_places=2, meaning_directions=3)
    config = replace(stage2_codebook.CONFIGS["mini"], tokenizer=told, batch=4, optim=SHORT)
    stage = stage2_codebook.stage(config, trained.work)
    along_CP = stage.module.tokenizer.quantizer.along_CP.clone()
    assert along_CP.shape == (TOKENIZER.code_width, 3) and not torch.equal(along_CP, torch.eye(*along_CP.shape))
    stage.evals = []
    fit(stage, tmp_path, device="cpu")
    # they are weights of the codebook, which does not learn them
    again = stage2_codebook.load_tokenizer(
        told, trained.work / "seed.stage1_qformer" / "weights.safetensors", tmp_path / "weights.safetensors"
    )
    torch.testing.assert_close(again.quantizer.along_CP, along_CP, atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="unexpected.*along_CP"):
        stage2_codebook.load_tokenizer(
            TOKENIZER, trained.work / "seed.stage1_qformer" / "weights.safetensors", tmp_path / "weights.safetensors"
        )
