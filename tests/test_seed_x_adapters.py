"""Specialities of SEED-X: a small folder on a base, several side by side that share it, packed with it, refused by others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from rebus.checkpoint import load_system
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.papers.seed_x import variants
from rebus.papers.seed_x.pack import pack, pack_adapter, unpack
from rebus.papers.seed_x.speciality import Sourceless, read_speciality, save_speciality
from rebus.papers.seed_x.stages import instruct, pretrain
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import System, encode, known_adapters, load
from rebus.train import Stage, fit
from rebus.visual import Editor
from seed_x_mini import INSTRUCT, PRETRAIN, SYSTEM, different, picture, write_all, write_base

ASKED = Document((user(picture(), "Make it blue."),))
SHORT = Sampling(max_new_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained base and two specialities of it, packed."""
    place = tmp_path_factory.mktemp("seed_x")
    work, weights = write_all(place), place / "weights" / "seed_x-mini"
    quick(pretrain.stage(replace(PRETRAIN, batch=1), work), work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.VARIANTS, "mini", SYSTEM)
        pack(work, weights)
        for name in ("chat", "edit"):
            stage = instruct.stage(replace(INSTRUCT, speciality=name, batch=1), work, base=weights)
            with torch.no_grad():  # three steps change little: give each a say of its own
                for number, (key, parameter) in enumerate(stage.module.named_parameters()):
                    if "lora_B" in key:
                        own = tiny.generator(number + 100 * len(name))
                        parameter.copy_(torch.randn(parameter.shape, generator=own) * 0.3)
            quick(stage, work)
        pack(work, weights)
    return place


def quick(stage: Stage, work: Path) -> None:
    """One step, which is not measured."""
    stage.evals = []
    stage.optim = replace(stage.optim, steps=1)
    fit(stage, work / stage.name, device="cpu")


@pytest.fixture(scope="module")
def base(folder: Path) -> System:
    return load("seed_x:mini", weights=folder / "weights" / "seed_x-mini", dtype=torch.float32)


def logits(system: System, document: Document = ASKED) -> torch.Tensor:
    """Scores after a document whose reply is open."""
    with torch.no_grad():
        batch = collate([_prompt(system, document)])
        return system.lm.llm.logits(system.lm.hidden(system.lm.embed(batch), batch)[0, -1:])


def _prompt(system: System, document: Document):
    [encoded] = encode(system.tokenizer, [document], replies="understanding")
    return system.grammar.serialize(encoded, reply="any")


# ------------------------------------------------------------------------------------------------ packing


def test_packing_writes_the_base_and_its_adapters_beside_it(folder: Path, tmp_path: Path) -> None:
    weights = folder / "weights"
    saved = load_system(weights / "seed_x-mini")
    assert saved.base == "mini" and set(saved.files) == {"lm", "detokenizer"}
    assert known_adapters("seed_x:mini", weights / "seed_x-mini") == ["chat", "edit"]
    held = load_system(weights / "seed_x-mini-edit")
    speciality = read_speciality(held)
    assert (speciality.base, speciality.base_hash) == ("seed_x:mini", saved.hash("lm"))
    assert (speciality.decoder, speciality.grids, speciality.template.draw) == ("second", ((1, 1),), "")
    names = set(held.tensors("lm"))
    assert all(".lora_" in n or "norm" in n or n.startswith(("input_p", "output_p")) for n in names)
    size = sum(file.stat().st_size for file in (weights / "seed_x-mini-edit").glob("*.safetensors"))
    assert size < 0.5 * sum(file.stat().st_size for file in (weights / "seed_x-mini").glob("*.safetensors"))
    assert [file.parent.name for file in unpack(weights / "seed_x-mini", tmp_path)] == [
        "seed_x.pretrain",
        "seed_x.detokenizer2",
        "seed_x.keeping",
    ]


def test_an_adapter_of_other_weights_is_not_packed(folder: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path, seed=9)
    with pytest.raises(RebusError, match="Train it again on these"):
        pack_adapter(folder / "work" / "seed_x.instruct.edit", other)
    with pytest.raises(RebusError, match="is not made of mini stages"):
        pack(folder / "work", tmp_path / "x", "17b")


# ------------------------------------------------------------------------------------------------ sharing


def test_specialities_side_by_side_share_the_base_and_change_nothing_of_it(base: System) -> None:
    before = logits(base)
    held = {name: x.data_ptr() for name, x in base.lm.named_parameters()}
    chat, edit = base.with_adapter("chat"), base.with_adapter("edit")
    alone = logits(edit)
    assert torch.equal(logits(base), before) and {n: x.data_ptr() for n, x in base.lm.named_parameters()} == held
    assert not torch.allclose(logits(chat), before) and not torch.allclose(logits(chat), alone)
    assert torch.equal(logits(edit), alone)
    assert (base.adapter, chat.adapter, edit.adapter) == ("", "chat", "edit")
    mine = {x.data_ptr() for x in base.lm.parameters()}
    own = [name for name, x in edit.lm.named_parameters() if x.data_ptr() not in mine]
    assert all(".lora_" in n or "norm" in n or n.startswith(("input_p", "output_p")) for n in own)
    assert edit.tokenizer.vision is base.tokenizer.vision  # type: ignore[union-attr]
    whole = sum(x.numel() for x in base.lm.llm.parameters())
    assert sum(x.numel() for name, x in edit.lm.named_parameters() if name in own and "llm." in name) < 0.1 * whole


def test_replies_of_two_that_run_by_turns_are_those_of_each_alone(base: System) -> None:
    chat, edit = base.with_adapter("chat"), base.with_adapter("edit")

    def said(system: System) -> list[object]:
        return list(system.stream(ASKED, modality="text", sampling=SHORT, generator=tiny.generator(1)))

    alone = said(chat), said(edit)
    streams = [s.stream(ASKED, modality="text", sampling=SHORT, generator=tiny.generator(1)) for s in (chat, edit)]
    together: tuple[list, list] = ([], [])
    left = [0, 1]
    while left:
        for number in list(left):
            piece = next(streams[number], None)
            if piece is None:
                left.remove(number)
            else:
                together[number].append(piece)
    assert (together[0], together[1]) == alone


def test_what_is_loaded_is_what_was_trained(folder: Path, base: System) -> None:
    module = instruct.begin(replace(INSTRUCT, speciality="edit"), folder / "weights" / "seed_x-mini")[0].eval()
    trained = load_file(folder / "work" / "seed_x.instruct.edit" / "weights.safetensors")
    module.load_state_dict(trained, strict=False)
    edit = base.with_adapter("edit")
    [document] = module.prepared([different()[3]])
    words = module.grammar.serialize(document, template="chat")
    same = edit.grammar.serialize(document)
    assert words.ids == same.ids and words.target == same.target
    with torch.no_grad():
        one, two = module.lm(collate([words])), edit.lm(collate([same]))
    torch.testing.assert_close(one.text, two.text, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(one.image, two.image, atol=5e-3, rtol=5e-3)


def test_load_takes_an_adapter_by_name_or_folder(folder: Path, base: System) -> None:
    weights = folder / "weights"
    named = load("seed_x:mini", weights=weights / "seed_x-mini", adapter="edit", dtype=torch.float32)
    by_folder = load(
        "seed_x:mini", weights=weights / "seed_x-mini", adapter=weights / "seed_x-mini-edit", dtype=torch.float32
    )
    assert torch.equal(logits(named), logits(by_folder)) and torch.equal(
        logits(named), logits(base.with_adapter("edit"))
    )
    drawn = load("seed_x:mini", weights=weights / "seed_x-mini", adapter="edit", parts=("detokenizer",))
    assert drawn.tokenizer is None and drawn.lm.llm.device.type == "cpu"


def test_the_decoder_is_that_of_the_stage_that_the_speciality_names(base: System) -> None:
    chat, edit = base.with_adapter("chat"), base.with_adapter("edit")
    assert isinstance(edit.detokenizer, Editor) and edit.detokenizer.edits and edit.detokenizer is base.detokenizer
    assert isinstance(chat.detokenizer, Sourceless) and not chat.detokenizer.edits
    drawn = []
    for source in (picture(), picture((0, 255, 0))):
        document = Document((user(source, "Draw it."),))
        made = [chat.generate([document], modality="image", sampling=SHORT)[0].images[0].generated]
        pictures = [
            [p for p in decoder.decode(
                made, sources=[source.pixels], negatives=[None], generators=[tiny.generator(0)],
                sampling=SHORT.image) if not hasattr(p, "step")][0].tobytes()
            for decoder in (chat.detokenizer, edit.detokenizer)
        ]  # fmt: skip
        drawn.append((made[0], *pictures))
    assert drawn[0][1] != drawn[0][2]  # a source is seen by the one alone


# ------------------------------------------------------------------------------------------------ what is refused


def test_what_does_not_belong_together_is_refused(folder: Path, base: System, tmp_path: Path) -> None:
    weights = folder / "weights"
    with pytest.raises(RebusError, match="no adapter 'paint' for seed_x:mini. Beside its weights are chat, edit"):
        base.with_adapter("paint")
    with pytest.raises(RebusError, match="already is made for chat"):
        base.with_adapter("chat").with_adapter("edit")
    other = write_base(folder, seed=3, name="other")
    stranger = load("seed_x:mini", weights=other, dtype=torch.float32)
    with pytest.raises(RebusError, match="was trained on seed_x:mini with the weights"):
        stranger.with_adapter(weights / "seed_x-mini-edit")
    with pytest.raises(RebusError, match="holds mini, which is no adapter"):
        base.with_adapter(weights / "mini")
    with pytest.raises(RebusError, match="with random ones"):
        load("seed_x:tiny", adapter=weights / "seed_x-mini-edit", parts=("lm",))
    with pytest.raises(RebusError, match="seed has no adapters"):
        load("seed:tiny", adapter="edit", parts=("lm",))
    with pytest.raises(RebusError, match="instruction tuning starts from a saved SEED-X"):
        instruct.begin(INSTRUCT, weights / "seed_x-mini-edit")


def test_a_damaged_adapter_is_refused(folder: Path, base: System, tmp_path: Path) -> None:
    saved = load_system(folder / "weights" / "seed_x-mini-edit")
    tensors = {name: saved.tensors("lm")[name] for name in saved.tensors("lm")}
    lora = next(name for name in tensors if ".lora_A" in name)
    speciality = read_speciality(saved)
    save_speciality(tmp_path / "missing", speciality, {k: x for k, x in tensors.items() if k != lora})
    with pytest.raises(RebusError, match="1 missing"):
        base.with_adapter(tmp_path / "missing")
    save_speciality(tmp_path / "surplus", speciality, {**tensors, "llm.other": torch.zeros(1)})
    with pytest.raises(RebusError, match="1 unexpected"):
        base.with_adapter(tmp_path / "surplus")
    about = json.loads((tmp_path / "surplus" / "system.json").read_text())
    about["config"]["hats"] = 1
    (tmp_path / "surplus" / "system.json").write_text(json.dumps(about))
    with pytest.raises(RebusError, match="hats in Speciality"):
        base.with_adapter(tmp_path / "surplus")
    first = replace(base, detokenizer=Sourceless(base.detokenizer))  # type: ignore[arg-type]
    with pytest.raises(RebusError, match="has the first"):
        first.with_adapter("edit")


def test_the_last_picture_is_what_a_second_edit_starts_from(base: System) -> None:
    edit = base.with_adapter("edit")
    started: list[object] = []
    decode = edit.detokenizer.decode  # type: ignore[union-attr]

    class Watched:
        settings = frozenset({"steps"})
        edits = True

        def decode(self, tokens, *, sources, **settings):
            started.extend(sources)
            return decode(tokens, sources=sources, **settings)

    edit = replace(edit, detokenizer=Watched())
    document = ASKED
    drawn: list[Image] = []
    for wish in ("", "Now green.", "Now red."):
        document = document if not wish else document.add(user(wish))
        reply = edit.generate([document], modality="image", sampling=SHORT)[0]
        drawn += reply.images
        document = document.add(reply)
    assert started == [ASKED.images[0].pixels, drawn[0].pixels, drawn[1].pixels]
    assert len(_prompt(edit, document).input_spans) == 4  # what was drawn is read again
