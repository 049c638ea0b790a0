"""SEED-X's mini begins its ways in and out as a reading that is right on the average, and keeps its words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from rebus.checkpoint import load_system
from rebus.data.pictures import load_pictures
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.wishes import Wishes
from rebus.nn.caption_rows import caption_vectors, words_at
from rebus.nn.name_rows import names_at
from rebus.nn.resampler import Resampler, ResamplerConfig
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.nn.word_readings import parts, words_of_names
from rebus.papers.seed_x import embedded
from rebus.papers.seed_x.beginnings import fit_drawings, look_nearby
from rebus.papers.seed_x.language_training import NORMS, WORDS
from rebus.papers.seed_x.stages import drawing, instruct, naming, pretrain
from rebus.sequence import collated
from rebus.train import Optim, fit
from rebus.visual import Features
from seed_x_mini import INSTRUCT, PRETRAIN, write_all, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beginnings")
    write_all(folder)
    return folder


@pytest.mark.parametrize(("grid", "side"), [(4, 8), (4, 4)])
def test_a_query_looks_at_its_own_place(grid: int, side: int) -> None:
    own = tiny.generator(0)
    resampler = Resampler(ResamplerConfig(grid=grid, width=96, heads=2, source_width=32), own)
    examples = torch.randn(200, side**2, 32, generator=own)
    look_nearby(resampler, examples)
    keys = resampler.key(resampler.norm_source(resampler.source(examples)) + resampler.positions(side))
    queries = resampler.query(resampler.norm_queries(resampler.queries_QC) + resampler.position_QC)
    cells = torch.arange(side) * grid // side
    place = (cells[:, None] * grid + cells).flatten()  # of each vector the query whose place it lies in
    for head in range(2):
        rows = slice(48 * head, 48 * head + 3)
        weights = (queries[:, rows] @ keys[..., rows].mT / 48**0.5).softmax(-1).mean(0)
        inside = torch.zeros(grid**2, grid**2).index_add_(1, place, weights)
        assert (inside.argmax(1) == torch.arange(grid**2)).all()
        assert inside.diagonal().mean() > 0.4


def test_what_is_found_points_to_captions_and_what_is_drawn_is_the_mean(folder: Path) -> None:
    work = folder / "work"
    module = pretrain.stage(replace(PRETRAIN, projector_start="captions"), work).module
    data = Frozen(work)
    x = data.rows("train", data.singles("train", 12), "tokens")[0][:, 1:]
    projector, out_of = module.lm.input_projector, module.lm.output_projector.resampler
    table = module.lm.llm.base.get_input_embeddings().weight
    with torch.no_grad():
        slots = projector.resampler(x)
    centre, spread = words_at(table)
    torch.testing.assert_close((slots - centre).square().sum(-1).mean().sqrt(), spread)
    captions = [data.bank("train").captions[i] for i in range(12)]
    wanted = caption_vectors(table, module.grammar.text, captions)
    found = slots.mean(1) - slots.mean((0, 1))
    assert torch.cosine_similarity(found, wanted).mean() > 0.5
    torch.testing.assert_close(out_of.proj.bias, x.mean((0, 1)))
    before = pretrain.stage(
        replace(PRETRAIN, projector_start="random"), work
    ).module.lm.output_projector.resampler.proj.bias
    assert not before.any()


def test_what_is_found_points_to_names(folder: Path) -> None:
    work = folder / "work"
    module = pretrain.stage(replace(PRETRAIN, projector_start="names"), work).module
    data, held = Frozen(work), load_named(work, "train")
    with torch.no_grad():
        slots = module.lm.input_projector.resampler(data.vision.vit(held.pixels(torch.arange(len(held))))[:, 1:])
    table = module.lm.llm.base.get_input_embeddings().weight
    centre, spread = words_at(table)
    torch.testing.assert_close((slots - centre).square().sum(-1).mean().sqrt(), spread)
    found = torch.nn.functional.normalize(slots.mean(1) - centre, dim=-1)
    named = (found @ names_at(table, module.grammar.text, held.names).T).argmax(1)
    assert (named == held.name_N).float().mean() > 0.5


def test_a_views_last_slots_are_words_of_its_name_and_stay_so(folder: Path, tmp_path: Path) -> None:
    work = folder / "work"
    stage = pretrain.stage(PRETRAIN, work)
    projector = stage.module.lm.input_projector
    held = load_named(work, "train")
    with torch.no_grad():
        x_INC = Frozen(work).vision.vit(held.pixels(torch.arange(len(held))))[:, 1:]
        said_IK = projector.words.words_QK[projector.words.logits(parts(x_INC, 2)).argmax(-1)]
    assert (said_IK == words_of_names(ByteTokenizer(), held.names, 4)[held.name_N]).all(1).float().mean() > 0.5
    rates = {entry.pattern: entry.lr for entry in stage.trainable}
    assert rates[WORDS] == PRETRAIN.word_lr < 1e-3 * rates["lm.input_projector.*"]
    begun = {name: x.clone() for name, x in projector.words.state_dict().items()}
    stage.evals, stage.gates = [], []
    fit(stage, tmp_path / "seed_x.pretrain", device="cpu")
    left = load_file(tmp_path / "seed_x.pretrain" / "weights.safetensors")
    assert len(begun) == 6
    for name, x in begun.items():
        torch.testing.assert_close(left[f"lm.input_projector.words.{name}"], x, atol=1e-5, rtol=1e-5)


def test_reading_begins_as_naming_and_drawing_left_it(folder: Path) -> None:
    work = folder / "work"
    aligned = replace(PRETRAIN, projector_start="aligned")
    with pytest.raises(
        RebusError,
        match=r"There is no .*seed_x\.naming.*from which this goes on\. Run `rebus train seed_x\.naming` first",
    ):
        pretrain.stage(aligned, work)
    speaker = naming.stage(naming.Config(system=PRETRAIN.system, copies=1, batch=2, optim=Optim(steps=2)), work)
    fit(speaker, work / "seed_x.naming", device="cpu")
    left = load_file(work / "seed_x.naming" / "weights.safetensors")
    assert {name.partition("layers.")[2][:1] for name in left if ".llm." in name} == {"0", "1"}
    told = {"named": 1, "depth": 1, "copies": 1, "batch": 2, "optim": Optim(steps=2), "wordings": 1}
    drawer = drawing.stage(drawing.Config(system=PRETRAIN.system, **told), work)
    fit(drawer, work / "seed_x.drawing", device="cpu")
    drawn = load_file(work / "seed_x.drawing" / "weights.safetensors")
    assert {name.partition("layers.")[2][:1] for name in drawn if ".llm." in name} == {"1"}
    assert (
        any(name.startswith("lm.output_projector.") for name in drawn)
        and "lm.input_projector.resampler.proj.weight" not in drawn
    )
    module = pretrain.stage(aligned, work).module
    begun = module.state_dict()
    assert all(torch.equal(begun[name], x) for name, x in (left | drawn).items())
    # what was aligned is what the language model reads of an image that is seen whole
    picture = Image(PIL.Image.linear_gradient("L").convert("RGB").resize((64, 64)))
    (seen,) = module.tokenizer.encode([picture], {"understanding"})
    assert seen.understood.position_W2.shape == (1, 2)
    read = naming.read(module.lm, module.tokenizer, seen.understood.x_WNC)
    torch.testing.assert_close(read[0], module.lm.input_projector([seen.understood]))
    assert torch.equal(
        speaker.module.vectors(seen.understood.x_WNC)[0],
        naming.read(speaker.module.lm, module.tokenizer, seen.understood.x_WNC)[0][-speaker.module.last :],
    )


def test_naming_begins_with_lent_adapters(folder: Path, tmp_path: Path) -> None:
    work, lender = folder / "work", write_base(tmp_path)
    told = {"system": PRETRAIN.system, "copies": 1, "batch": 2, "optim": Optim(steps=1), "adapters": str(lender)}
    lent = load_system(lender).tensors("lm")
    begun = naming.stage(naming.Config(**told), work).module.state_dict()
    names = [name for name in begun if ".lora_" in name]
    assert {name.partition("layers.")[2][:1] for name in names} == {"0", "1"}
    assert all(torch.equal(begun[name], lent[name.removeprefix("lm.")].float()) for name in names)


def test_lower_states_and_the_upper_layers_are_the_whole_models(folder: Path) -> None:
    """A wish is drawn so as the language model draws it in a document."""
    work = folder / "work"
    if not (work / naming.NAME / "weights.safetensors").exists():
        config = naming.Config(system=PRETRAIN.system, copies=1, batch=2, optim=Optim(steps=1))
        fit(naming.stage(config, work), work / naming.NAME, device="cpu")
    told = {"named": 1, "depth": 1, "copies": 1, "batch": 2, "wordings": 2}
    stage = drawing.stage(drawing.Config(system=PRETRAIN.system, **told), work)
    module = stage.module.eval()
    data = Frozen(work)
    whole = naming.fresh(PRETRAIN.system, data, 42)
    pictures = load_pictures(work / "emoji")
    fit_drawings(whole, data, Wishes(pictures, "train", 1), tiny.generator(0))
    seen = drawing.seen(work, "train", whole, pictures, data, stage.config)
    row, draws = seen.wishes.rows[0], whole.lm.output_projector.words
    said = [int(draws.ids_W[place]) for place in seen.said_IK[0]]
    name = f" {pictures.concept_label[row]}....".encode()[: draws.config.words - 1]
    assert bytes(said) == name + b" "  # bytes are this model's words: of the style the first alone
    number = len(seen.wishes) - 1
    x_1SC = torch.randn(1, 16, 192, generator=tiny.generator(0))
    target = Image(generated=Features(x_1SC, whole.grammar.source))
    document = Document((user(seen.wishes.text(number)), assistant(target)))
    with torch.no_grad():
        lower = drawing.LowerStates(
            module.lm.llm, [drawing.words(seen.wishes, number, whole.grammar, 192)], 1, folder / "x.npy"
        )
        tokens = torch.randn(1, 64, 192, generator=tiny.generator(1))
        apart = module([lower[0]], x_1SC, seen.said_IK[:1], tokens, torch.tensor([0])).parts["drawing"]
        row = whole.grammar.serialize(document, template="chat", loss="reply")
        together = module.lm.losses(collated([row], pad_id=0)).image
    torch.testing.assert_close(apart, together, atol=1e-3, rtol=1e-3)
    for name, value in (("named", 0), ("wordings", 0), ("depth", 2)):
        with pytest.raises(RebusError, match="Give"):
            drawing.stage(drawing.Config(system=PRETRAIN.system, **{**told, name: value}), work)


def test_norms_learn_at_a_rate_of_their_own(folder: Path) -> None:
    rates = {entry.pattern: entry.lr for entry in pretrain.stage(PRETRAIN, folder / "work").trainable}
    assert rates[NORMS[0]] == PRETRAIN.full_lr == 5e-5 and rates["lm.llm.*lora_*"] == PRETRAIN.lr
    same = pretrain.stage(replace(PRETRAIN, full_lr=None), folder / "work").trainable
    assert {entry.lr for entry in same if entry.pattern == NORMS[0]} == {PRETRAIN.lr}


def test_pictures_of_edits_are_never_moved(folder: Path) -> None:
    pictures, lines = embedded.read_embedded(folder / "work")
    mix = {"describe": 0.5, "edit": 0.5}
    still, moved = (embedded.documents(pictures, lines, "train", 0, mix, moved=share) for share in (0.0, 1.0))
    changed = {"emoji": set(), "edits": set()}
    for position in range(40):
        one, other = ([i.pixels.tobytes() for i in source[position].images] for source in (still, moved))
        changed[still.place(position).source].add(one != other)
    assert changed == {"emoji": {True}, "edits": {False}}


def test_a_chat_is_mixed_with_plain_replies_of_the_base(folder: Path) -> None:
    work, base = folder / "work", write_base(folder)
    (work / "cache" / "base_replies.json").write_text('[["How are you?", "Well."]]')
    for speciality, said in (("chat", True), ("story", False)):
        stage = instruct.stage(replace(INSTRUCT, speciality=speciality, replies=1.0), work, base=base)
        texts = {stage.data.documents[n].messages[-1].text for n in range(3)}
        assert (texts == {"Well."}) == said
    module, _ = instruct.begin(INSTRUCT, base)
    system = instruct.unlearned(module, base)
    assert not [name for name in system.lm.state_dict() if "lora_" in name]
    assert system.lm.llm.vocabulary == module.lm.llm.vocabulary


def test_a_merged_base_has_no_replies_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(folder, name="seed_x-merged")
    module, _ = instruct.begin(INSTRUCT, base)
    merged = replace(PRETRAIN.system, language=replace(instruct.SeedXConfig().language))
    monkeypatch.setattr(instruct, "config_from_json", lambda kind, held: merged)
    with pytest.raises(RebusError, match="this base holds a merged one"):
        instruct.unlearned(module, base)
