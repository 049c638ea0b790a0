"""LaVIT's stages on the embedded kind of data, tiny: each learns what it should and nothing else; what they leave is packed
and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from lavit_mini import DECODER, RECONSTRUCTION, SYSTEM, TOKENIZER, WIDE, replaced, run, targets, tops, write_work
from rebus.data.emoji import EmojiDocuments
from rebus.data.pictures import load_pictures
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig
from rebus.grammar import Allow
from rebus.mini.frozen import Frozen, named_tokens
from rebus.mini.named import load_named
from rebus.mini.pack import pack as pack_shared
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.nn.word_readings import kept_parts, words_of_names
from rebus.packages import embedded
from rebus.papers.lavit import pack as packing
from rebus.papers.lavit.bank import bank_codes, bank_tokenizer, unpadded
from rebus.papers.lavit.language_training import LanguageTraining, cut
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizerConfig
from rebus.papers.lavit.pack import pack, unpack
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.stages import (
    drawing,
    naming,
    stage1a_selector,
    stage1b_codebook,
    stage2_language,
    stage3_pixels,
    stage4_instruct,
)
from rebus.papers.lavit.variants import MINI, VARIANTS
from rebus.sampling import Sampling
from rebus.system import load
from rebus.train import Optim, Stage, fit
from rebus.train.log import read_journal
from rebus.visual import Codes

SHORT = Optim(steps=2, precision="fp32")
FIRST = stage1a_selector.Config(loss=RECONSTRUCTION, drawn=0.5, batch=4, lr=1e-3, optim=SHORT)
SECOND = stage1b_codebook.Config(loss=RECONSTRUCTION, batch=4, lr=1e-3, revive_every=2, optim=SHORT)
LANGUAGE = {"system": SYSTEM, "selection": "threshold", "batch": 2, "lr": 1e-2, "row_lr": 1e-2, "optim": SHORT}
THIRD = stage2_language.Config(
    **LANGUAGE, row_start="captions", projector_start="names", mix={"caption": 0.5, "draw": 0.5}, seed=1
)
PIXELS = stage3_pixels.Config(
    tokenizer=TOKENIZER,
    detokenizer=SYSTEM.detokenizer,
    selection="threshold",
    true_share=0.5,
    batch=2,
    optim=Optim(steps=1, precision="fp32", ema=0.9),
)
DRAWING = drawing.Config(
    system=SYSTEM, copies=2, batch=2, depth=1, named=2, wordings=1, written=2, lr=1e-2, optim=SHORT
)
FOURTH = stage4_instruct.Config(**LANGUAGE, mix={"request": 0.5, "describe": 0.5})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After both phases of stage 1."""
    folder = write_work(tmp_path_factory.mktemp("work"))
    names, result = run(stage1a_selector.stage(FIRST, folder), folder)
    drawn = {"detokenizer.decoder", "detokenizer.draft"}
    assert tops(names) == {"tokenizer.selector", "tokenizer.merger", "tokenizer.to_code", "done", *drawn}
    assert {"val/cosine", "val/kept", "val/kept_deviation", "val/kept_5_percentile"} <= result.evals.keys()
    assert 1 <= result.evals["val/kept_5_percentile"] <= result.evals["val/kept"] <= 64
    names, result = run(stage1b_codebook.stage(SECOND, folder), folder)
    assert tops(names) == {"tokenizer.merger", "tokenizer.to_code", "tokenizer.quantizer", "done", *drawn}
    assert 1 <= result.evals["val/codes_used"] <= 32 and 1 <= result.evals["val/perplexity"] <= 32
    return folder


# ------------------------------------------------------------------------------------------------ stage 1


def test_the_papers_numbers_are_the_defaults() -> None:
    for config in (stage1a_selector.CONFIGS["paper"], stage1b_codebook.CONFIGS["paper"]):
        loss = config.loss
        assert (loss.share, loss.share_weight, loss.share_of) == (1 / 3, 2.0, "per_image")
        assert (loss.tokenizer.codebook_size, loss.tokenizer.code_width, config.batch) == (16384, 32, 2048)
        assert loss.tokenizer.merger.depth == loss.decoder.depth == 12 and loss.draft_weight == 0
    steps = (stage1a_selector.CONFIGS["paper"].optim.steps, stage1b_codebook.CONFIGS["paper"].optim.steps)
    assert sum(steps) == 50_000 and stage3_pixels.CONFIGS["paper"].optim.steps == 20_000
    assert stage2_language.CONFIGS["paper"].visual_loss_in_image_text


def test_patches_are_drawn_as_long_as_the_config_says() -> None:
    module = stage1a_selector.SelectorTraining(replace(FIRST, optim=replace(SHORT, steps=4)), torch.Generator())
    scales = []
    for _ in range(4):
        module.done += 1
        scales.append(module.scale())
    assert scales == [1.0, 1.0, 0.0, 0.0]
    assert stage1a_selector.SelectorTraining(stage1a_selector.CONFIGS["mini"], torch.Generator()).scale() == 1.0


def test_a_resumed_run_is_the_unbroken_run(work: Path, tmp_path: Path) -> None:
    config = replace(SECOND, optim=Optim(steps=3, precision="fp32"), revive_below=10.0)
    whole = fit(stage1b_codebook.stage(config, work), tmp_path / "whole", device="cpu", log_every=1)
    broken = stage1b_codebook.stage(config, work)
    broken.optim = replace(config.optim, steps=2)
    first = fit(broken, tmp_path / "broken", device="cpu", log_every=1, save_every=2)
    rest = fit(stage1b_codebook.stage(config, work), tmp_path / "broken", device="cpu", log_every=1)
    # the schedule knows the whole run's length, so the first part may differ in its rates but not in its first loss
    assert first.losses[0] == pytest.approx(whole.losses[0], rel=1e-6)
    assert len(rest.losses) == 1 and rest.finished


def test_the_second_phase_needs_the_first(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="There is no .*stage1a_selector.* Train lavit.stage1a_selector first"):
        stage1b_codebook.stage(SECOND, tmp_path)


def test_codes_of_the_bank_are_those_of_its_pictures(work: Path) -> None:
    data = Frozen(work)
    tokenizer = bank_tokenizer(TOKENIZER, data)
    rows = unpadded(bank_codes(data, "val", tokenizer)[[0, 3]])
    pictures = data.bank("val").images_NHW3[[0, 3]]
    encoded = tokenizer.encode([Image(PIL.Image.fromarray(x)) for x in pictures], {"generation"})
    for ids_N, image in zip(rows, encoded, strict=True):
        assert len(ids_N) == len(image.generated.ids_N)  # features are kept in half precision, which may move a code
        assert (ids_N == image.generated.ids_N).float().mean() > 0.8


# ------------------------------------------------------------------------------------------------ stages 2 and 4


def language(stage: Stage) -> LanguageTraining:
    assert isinstance(stage.module, LanguageTraining)
    return stage.module


def test_the_language_model_learns_in_both_orders(work: Path) -> None:
    stage = stage2_language.stage(replace(THIRD, selection="expected", gates=GateConfig(every=2, then="warn")), work)
    stage.evals = []  # the pictures of the tests have no split to be measured on
    module = language(stage)
    # codes begin as the words of their pictures; those that never occur as the mean of all words
    codes = torch.cat(unpadded(bank_codes(Frozen(work), "train", module.tokenizer))).unique()
    centre = module.lm.llm.base.get_input_embeddings().weight.float().mean(0)
    moved = ((module.lm.llm.rows.input.weight_VD[2:] - centre).norm(dim=1) > 1e-4).nonzero().flatten()
    assert len(moved) and set(moved.tolist()) <= set(codes.tolist())
    for name, x in module.tokenizer.merger.state_dict().items():  # the second merger begins as the first
        assert torch.equal(module.lm.input_projector.merger.state_dict()[name], x)
    names, result = run(stage, work)
    fitted = {"lm.input_projector.merger", "lm.input_projector.words"}
    assert tops(names, 3) == {"lm.llm.rows", "lm.llm.base", "lm.input_projector.proj"} | fitted
    assert {name.split(".")[-2] for name in names if ".base." in name} == {"default"}  # adapters alone
    assert all(0 < loss < 12 for loss in result.losses)
    measured = {
        record["step"]: set(record) for record in read_journal(work / stage.name / "log.jsonl") if "lr" not in record
    }
    watched = {"gate/caption/chosen", "gate/draw/chosen", "gate/text_kept/perplexity"}
    assert measured == {0: {"step", *watched}, 2: {"step", *watched}}


def test_codes_compete_with_what_the_grammar_allows_in_an_image(work: Path) -> None:
    module = language(stage2_language.stage(replace(THIRD, code_softmax="image"), work))
    places, spelling = module.lm.places, module.grammar.config
    assert places is not None
    allowed = module.grammar.next([spelling.begin_image, *[spelling.first_code] * spelling.fewest], "image", 20)
    assert isinstance(allowed, Allow) and places.places == 1
    first = places.first + module.lm.llm.words
    assert allowed.mask_V.nonzero().flatten().tolist() == list(range(first, first + places.each))


def test_a_second_language_stage_goes_on_with_the_first(work: Path) -> None:
    if not (work / stage2_language.NAME).exists():
        run(replaced(stage2_language.stage(THIRD, work)), work)
    (work / "cache" / "base_replies.json").write_text('[["How are you?", "Well."]]')
    stage = replaced(stage4_instruct.stage(replace(FOURTH, replies=1.0), work))
    assert stage.data.documents[3].messages[1].text == "Well."
    stage = replaced(stage4_instruct.stage(FOURTH, work))
    held = {f"lm.{k}": v for k, v in language(stage).lm.state_dict().items()}
    from rebus.papers.lavit.reconstruction import stage_weights

    left = stage_weights(work / stage2_language.NAME / "weights.safetensors")
    assert all(torch.equal(held[name], x) for name, x in left.items() if name.startswith("lm."))
    names, _ = run(stage, work)
    assert not [name for name in names if name.startswith("tokenizer.")]


def test_the_codes_of_an_image_that_is_read_are_learned_where_the_switch_says(work: Path) -> None:
    image = Image(PIL.Image.linear_gradient("L").convert("RGB"))
    pair = Document((user(image), assistant("a ramp")))
    on = language(
        stage2_language.stage(replace(THIRD, system=WIDE, row_start="random", projector_start="random"), work)
    )
    off = language(
        stage2_language.stage(
            replace(THIRD, visual_loss_in_image_text=False, row_start="random", projector_start="random"), work
        )
    )
    (inside, rest), (none, others) = targets(on, pair), targets(off, pair)
    (words,) = on.sequences([pair])
    (start, stop), first = words.input_spans[0], on.grammar.config.first_code
    assert inside == stop - start and none == 0 and rest >= others >= len("a ramp") + 1
    (encoded,) = on.tokenizer.encode([image], {"generation"})
    assert [word - first for word in words.ids[start:stop]] == encoded.generated.ids_N.tolist()


def test_reading_begins_as_naming_left_it(work: Path) -> None:
    with pytest.raises(
        RebusError, match=r"There is no .*lavit\.naming/weights\.safetensors.*Train lavit\.naming first"
    ):
        stage2_language.stage(replace(THIRD, projector_start="aligned"), work)
    stage = naming.stage(naming.Config(system=SYSTEM, copies=2, batch=2, lr=1e-2, optim=SHORT), work)
    # where processes train together it is their wrapper that must be called
    assert stage.step(lambda x_INC, name_I: (x_INC.shape[1], x_INC.dtype, len(name_I)), [0, 1]) == (
        64,
        torch.float32,
        2,
    )
    held, projector = load_named(work, "train"), stage.module.lm.input_projector
    with torch.no_grad():
        x_INC = Frozen(work).vision.vit(held.pixels(torch.arange(len(held))))[:, 1:]
        keep_IN = stage.module.tokenizer.keep(x_INC)
        x_ISC = kept_parts(projector.merger.kept(x_INC, keep_IN), keep_IN, 2)
        said_IK = projector.words.words_QK[projector.words.logits(x_ISC).argmax(-1)]
    aim_IK = words_of_names(ByteTokenizer(), held.names, 2)[held.name_N]
    assert (said_IK == aim_IK).all(
        1
    ).float().mean() > 0.5  # it was fitted to names, and what it reads of stays as it was
    begun = {name: x.clone() for name, x in stage.module.state_dict().items()}
    names, result = run(stage, work)
    assert {name for name in names if ".layers.1." in name} and 0 <= result.evals["train/said"] <= 1
    left = load_file(work / "lavit.naming" / "weights.safetensors")
    fitted = [name for name in left if name.startswith(("lm.input_projector.words.", "lm.input_projector.merger."))]
    assert "lm.input_projector.words.words_QK" in fitted and "lm.input_projector.merger.norm.weight" in fitted
    for name in fitted:
        torch.testing.assert_close(left[name], begun[name], atol=1e-5, rtol=1e-5)
    assert not torch.equal(begun["lm.input_projector.proj.weight"], left["lm.input_projector.proj.weight"])
    module = stage2_language.stage(replace(THIRD, projector_start="aligned"), work).module
    begun = module.state_dict()
    assert left and all(torch.equal(begun[name], x) for name, x in left.items() if name in begun)
    # images of different numbers of vectors are read side by side as each alone
    with torch.no_grad():
        both = naming.read(module.lm, module.tokenizer, x_INC)
        for x_NC, together in zip(x_INC, both, strict=True):
            torch.testing.assert_close(
                together, naming.read(module.lm, module.tokenizer, x_NC[None])[0], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("start", ["captions", "names"])
def test_the_projector_begins_among_the_words(start: str, work: Path) -> None:
    started = language(stage2_language.stage(replace(THIRD, projector_start=start), work))
    projector = started.lm.input_projector
    assert isinstance(projector, LavitInputProjector)
    noise = language(
        stage2_language.stage(replace(THIRD, row_start="random", projector_start="random"), work)
    ).lm.input_projector
    for name, x in projector.merger.state_dict().items():
        torch.testing.assert_close(x, started.tokenizer.merger.state_dict()[name], atol=0, rtol=0)
    table = started.lm.llm.base.get_input_embeddings().weight.float()
    data = Frozen(work)
    with torch.no_grad():
        if start == "names":
            held = load_named(work, "train")
            x_INC = data.vision.vit(held.pixels(torch.arange(len(held))))[:, 1:]
        else:
            x_INC = data.rows("train", data.singles("train", 12), "tokens")[0][:, 1:]
        read_TD = projector.proj(projector.merger.kept(x_INC, started.tokenizer.keep(x_INC)))
    spread = (table - table.mean(0)).square().sum(1).mean()
    torch.testing.assert_close((read_TD - table.mean(0)).square().sum(1).mean(), spread)  # as ordinary words lie
    assert not torch.equal(projector.proj.weight, noise.proj.weight)


def test_patches_may_be_drawn_anew_each_time(work: Path) -> None:
    stage = stage2_language.stage(
        replace(THIRD, selection="sample", row_start="random", projector_start="random"), work
    )
    module, pictures = language(stage), load_pictures(work / "emoji")
    documents = [EmojiDocuments(pictures, split="train", seed=0, mix={"caption": 1.0})[n] for n in range(2)]
    state = module.generator.get_state()
    lengths = [[len(words) for words in module.sequences(documents)] for _ in range(4)]
    assert len({tuple(x) for x in lengths}) > 1
    module.generator.set_state(state)
    assert [len(words) for words in module.sequences(documents)] == lengths[0]


def test_a_long_document_is_cut_before_an_image_that_does_not_fit(work: Path) -> None:
    module = language(stage2_language.stage(replace(THIRD, row_start="random", projector_start="random"), work))
    image = Image(PIL.Image.linear_gradient("L").convert("RGB"))
    (words,) = module.sequences([Document((user(image, "one", image), assistant("two")))])
    (first, second) = words.input_spans
    short = cut(words, second[1] - 1)
    assert len(short) == second[0] and short.input_spans == [first] and len(short.inputs) == 1
    assert cut(words, len(words)) is words
    assert len(cut(words, first[1])) == first[1]


# ------------------------------------------------------------------------------------------------ stage 3, packing


def taught(work: Path) -> None:
    """Lets the language model learn what it learns before it draws, where it has not yet."""
    for name, made in (
        (stage2_language.NAME, (stage2_language, THIRD)),
        (stage4_instruct.NAME, (stage4_instruct, FOURTH)),
    ):
        if not (work / name).exists():
            run(replaced(made[0].stage(made[1], work)), work)


def test_what_is_drawn_is_said_in_words_that_are_learned(work: Path) -> None:
    taught(work)
    stage = drawing.stage(DRAWING, work)
    codes, before = stage.module.lm.llm.codes, load_file(work / stage4_instruct.NAME / "weights.safetensors")
    begun = stage.module.state_dict()
    assert before and all(torch.equal(begun[name], x) for name, x in before.items() if ".codes." not in name)
    # what words look like was fitted to whether patches are kept, and to their codes
    tokens, _, _ = named_tokens(Frozen(work), "train", copies=2)
    keep_IN, ids = drawing.tokens_of(stage.module.tokenizer, tokens, len(load_named(work, "train")))
    torch.testing.assert_close(codes.draws.centre_SC, codes.aim(keep_IN, ids).mean(0))
    wanted_IPX = codes.aim(keep_IN, ids)[:2]
    codes_IT = pad_sequence(ids[:2], batch_first=True, padding_value=-1)
    said_IUV = codes.follow(wanted_IPX, codes_IT)
    nats = [-said_IUV[i, t, k] for i in range(2) for t, k in enumerate([*(ids[i] + 1).tolist(), 0])]
    torch.testing.assert_close(drawing.code_nats(codes, wanted_IPX, codes_IT), torch.stack(nats).mean())
    names, result = run(stage, work)
    assert {"lm.llm.codes.draws.up_KRD", "lm.llm.codes.sharpness"} <= names
    rest = {name for name in names if ".codes." not in name}
    assert rest and all(".layers.1." in name and "lora" in name for name in rest)
    assert 0 <= result.evals["train/wished"] <= 1 and result.evals["train/drawing"] > 0
    plain = replace(SYSTEM, language=replace(SYSTEM.language, codes=None))
    with pytest.raises(RebusError, match="and not from words. Give its `language` `codes`"):
        drawing.stage(replace(DRAWING, system=plain), work)


def test_the_image_decoder_goes_on_from_an_earlier_run(work: Path) -> None:
    stage = stage3_pixels.stage(PIXELS, work)
    held = {name: x + 0.5 for name, x in stage.module.state_dict().items() if ".draft." in name}
    (work / "earlier").mkdir()
    save_file(held, work / "earlier" / "weights.safetensors")
    again = stage3_pixels.stage(replace(PIXELS, begin="earlier", singles=2), work).module.state_dict()
    for name, x in stage.module.state_dict().items():
        assert torch.equal(again[name], held.get(name, x)), name
    with pytest.raises(RebusError, match=r"There is no .*never/weights\.safetensors"):
        stage3_pixels.stage(replace(PIXELS, begin="never"), work)


def test_the_mini_is_packed_and_loaded_as_it_was_trained(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(work)
    if not (work / drawing.NAME).exists():
        run(replaced(drawing.stage(DRAWING, work)), work)
    stage = stage3_pixels.stage(PIXELS, work)
    names, result = run(stage, work)
    assert tops(names) == {"detokenizer.denoiser", "detokenizer.draft"}
    assert {"val/codes_psnr", "val/codes_draft_psnr"} <= result.evals.keys()

    monkeypatch.setitem(packing.VARIANTS, "mini", SYSTEM)
    pack_shared(work, tmp_path / "mini")
    saved = pack(work, tmp_path / "lavit-mini")
    assert saved.base == "mini" and set(saved.files) == {"tokenizer", "lm", "detokenizer"}
    assert not [name for name in saved.tensors("tokenizer") if name.startswith("visual_encoder.")]
    system = load("lavit:mini", weights=tmp_path / "lavit-mini", dtype=torch.float32)
    held = {f"detokenizer.{name}": x for name, x in system.detokenizer.state_dict().items()}
    for name, x in stage.module.state_dict().items():
        torch.testing.assert_close(held[name], x, atol=2e-3, rtol=2e-3)  # kept in half precision
    picture = Image(PIL.Image.linear_gradient("L").convert("RGB"))
    (encoded,) = system.tokenizer.encode([picture], {"generation"})
    (trained,) = bank_tokenizer(TOKENIZER, Frozen(work)).encode([picture], {"generation"})
    assert len(encoded.generated.ids_N) == len(trained.generated.ids_N)
    assert isinstance(encoded.generated, Codes) and encoded.generated.source == system.grammar.source
    (said,) = system.generate(
        [Document((user(picture, "What?"),))], modality="image", sampling=Sampling(max_new_tokens=12)
    )
    assert said.images[0].pixels.size == (64, 64) and 2 <= len(said.images[0].generated.ids_N) <= 10

    written = unpack(tmp_path / "lavit-mini", tmp_path / "again")
    assert {path.parent.name for path in written} == {name for places in packing.PLACES.values() for name, _ in places}
    for name in ("mini.vision", "mini.vae", "bank", "cache", "emoji"):
        (tmp_path / "again" / name).symlink_to(work / name)
    stage1b_codebook.stage(SECOND, tmp_path / "again")  # training goes on from there
    stage4_instruct.stage(FOURTH, tmp_path / "again")


def test_the_mini_fits_its_budget_and_says_how_it_is_trained() -> None:
    assert VARIANTS["mini"] is MINI and isinstance(MINI.detokenizer, MiniDetokenizerConfig)
    assert MINI.tokenizer.merger == MINI.projector and DECODER.patches == MINI.grammar.patches == 64
    try:
        embedded("lavit-mini")
    except RebusError:
        with pytest.raises(RebusError, match=r"made by runs/lavit_mini\.sh"):
            load("lavit:mini")
