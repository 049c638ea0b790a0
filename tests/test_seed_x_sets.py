"""SEED-X's language stages on a user's sets, tiny: the published tables, how records are worded, what fits and what not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from tests import tiny

from rebus.checkpoint import export
from rebus.data.lines import Unreadable
from rebus.data.records import Record
from rebus.data.source_batches import Source, SourceBatch
from rebus.document import Box, Document, assistant, user
from rebus.errors import RebusError
from rebus.papers.seed_x.convert import vision_rules
from rebus.papers.seed_x.language_training import LanguageTraining, fitted, flipped
from rebus.papers.seed_x.mixture import INSTRUCT as TABLES
from rebus.papers.seed_x.mixture import PRETRAIN as TABLE
from rebus.papers.seed_x.stages import instruct, pretrain
from rebus.papers.seed_x.templates import TEMPLATES
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import TINY
from rebus.train import Optim, fit
from seed_pairs import write_pairs
from seed_x_mini import INSTRUCT, picture, write_all, write_base

SYSTEM = replace(TINY, language=replace(TINY.language, lora=pretrain.MINI.language.lora))  # type: ignore[union-attr]
CONFIG = pretrain.Config(system=SYSTEM, source_batch=2, lr=1e-2, row_lr=1e-2, optim=Optim(steps=2, precision="fp32"))
CONFIG = replace(CONFIG, in_full=pretrain.NORMS)  # the tiny head is tied to the table
BOXED = "a cat <box_start><loc-112><loc-56><loc-20><loc-30><box_end> sits"


def module(**settings: object) -> LanguageTraining:
    generator = tiny.generator(0)
    tokenizer = SeedXTokenizer(SYSTEM.tokenizer, generator=generator)
    return pretrain.fresh(replace(CONFIG, **settings), tokenizer, None, generator).eval()


def word(name: str, images: int = 1, seed: int = 0, **fields: object) -> Document:
    """A record as its template words it."""
    return TEMPLATES[name](Record(tuple(picture((n, 0, 0), (32, 32)) for n in range(images)), fields), Random(seed))


def roles(document: Document) -> list[tuple[str, int, str]]:
    return [(message.role, len(message.images), message.text) for message in document.messages]


# ------------------------------------------------------------------------------------------------ tables and templates


def test_the_published_loaders_numbers() -> None:
    found = {s.name: (s.max_length, s.batch, s.weight) for name in ("chat", "edit") for s in TABLES[name]}
    assert found == {
        "conversations": (880, 2, 0.6),
        "drawings": (260, 8, 0.2),
        "edits": (320, 6, 0.4),
        "automatic edits": (320, 6, 0.2),
    }
    assert {s.form for s in TABLE} == {"caption", "interleaved", "instruction", "text"}
    assert {s.template for table in (TABLE, *TABLES.values()) for s in table} <= TEMPLATES.keys()


def test_records_are_worded_as_their_sets_are() -> None:
    first = [roles(word("caption", seed=seed, text="A cat."))[0][1] for seed in range(300)]
    assert 15 <= sum(first) <= 50  # one time in ten the image comes first
    boxes = [part for part in word("grounded", text=BOXED).messages[1].content if isinstance(part, Box)]
    assert boxes == [Box(0.5, 0.25, 20 / 224, 30 / 224)]
    with pytest.raises(Unreadable, match="four|locations"):
        word("grounded", text="a <box_start><loc-1><loc-2><loc-3><loc-4><loc-5><box_end>")
    before = {type(word("edit", 2, seed, instruction="Redder.").messages[0].content[0]) for seed in range(20)}
    assert len(before) == 2  # the image before the words, or after them
    rounds = [len(word("edit", 4, seed, instructions=["a", "b", "c"]).messages) for seed in range(30)]
    assert set(rounds) == {2, 4, 6}
    told = word("story", 3, 1, captions=["One.", "Two.", "Three."])
    assert roles(told)[1][1] == 1 and roles(told)[1][2].strip() in ("Two.", "Three.")
    assert roles(word("wear", 3)) == [("user", 2, "Let the person wear this."), ("assistant", 1, "")]
    assert [type(p) for p in word("layout", 0, question="A slide.", layout=BOXED).messages[1].content].count(Box) == 1
    talk = word("turns", 0, turns=["Hi.", "Hello.", "Where?", BOXED])
    assert [m.role for m in talk.messages] == ["user", "assistant"] * 2 and Box in map(type, talk.messages[3].content)
    asked = word("turns", 1, 3, turns=["What?", "A cat."])
    assert roles(asked)[0][1] == 1 and "What?" in roles(asked)[0][2]


# ------------------------------------------------------------------------------------------------ what fits


def test_a_long_document_is_cut_before_an_image_that_would_be_torn() -> None:
    made = module()
    [document] = made.prepared([Document((user(picture(size=(64, 64)), "a" * 50), assistant("b" * 50)))])
    words = made.words(document)
    assert fitted(words, len(words)) is words
    cut = fitted(words, len(words) - 10)
    assert cut is not None and cut.ids == words.ids[:-10] and cut.input_spans == words.input_spans
    assert fitted(words, 40) is None  # nothing that is learned is left
    [drawing] = made.prepared([Document((user("c" * 60), assistant(picture())))])
    assert fitted(made.words(drawing), len(made.words(drawing)) - 2) is None  # the image is lost
    [page] = made.prepared([Document((assistant("d" * 20, picture(), "e" * 20, picture()),))], pages=True)
    made.page_read = 1.0
    [page] = made.prepared([Document((assistant("d" * 20, picture(size=(32, 32)), "e" * 20, picture()),))], pages=True)
    words = made.words(page)
    last = words.input_spans[-1]
    cut = fitted(words, last[1] - 1)
    assert cut is not None and len(cut) == last[0] - 1 and len(cut.inputs) == len(words.inputs) - 1


def test_what_is_too_long_is_dropped_or_flipped() -> None:
    source = Source("captions", ("X",), 60, 2, 1.0, "caption", template="caption")
    long, short = (Document((user(text), assistant(picture()))) for text in ("w" * 70, "short"))
    assert flipped(long) is not None and flipped(Document((user("a"), assistant("b")))) is None
    made = module()
    assert [len(r.output_spans) for r in made.source_rows(SourceBatch([long, short], source))] == [1]
    assert made.dropped == 1
    made = module(too_long="flip")
    rows = made.source_rows(SourceBatch([long, short], source))
    assert [len(r.output_spans) for r in rows] == [0, 1] and made.dropped == 0 and any(rows[0].target)
    with pytest.raises(RebusError, match="Not one of 1 documents of captions fits into 60 words"):
        module().source_rows(SourceBatch([long], source))


def test_words_before_a_drawing_are_learned_unless_as_published() -> None:
    document = word("draw", text="a cat")
    source = Source("drawings", ("X",), 400, 2, 1.0, template="draw")
    made = module()
    [ours] = made.source_rows(SourceBatch([document], source))
    made.responses = "unlearned"
    [theirs] = made.source_rows(SourceBatch([document], source))
    mark = ours.output_spans[0][0] - 1
    assert sum(theirs.target) < sum(ours.target) and theirs.target[mark] and not any(theirs.target[:mark])
    assert theirs.ids == ours.ids and theirs.target[mark:] == ours.target[mark:]


# ------------------------------------------------------------------------------------------------ stages


def lines(path: Path, *records: dict) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path.name


def test_both_stages_run_on_a_users_sets(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 16, side=410)
    theirs = export(tokenizer_weights := module().tokenizer.vision.state_dict(), vision_rules(2))
    torch.save({name: theirs[name].clone() for name in theirs}, tmp_path / "qwen_vit_G.pt")
    there = {
        "SAM": "pairs",
        "GRIT": lines(tmp_path / "grit.jsonl", {"images": ["a.png"], "text": BOXED}),
        "Wikipedia": lines(tmp_path / "wiki.jsonl", {"text": "A cat is an animal."}),
        "MagicBrush": lines(tmp_path / "edits.jsonl", {"images": ["a.png", "a.png"], "instruction": "Redder."}),
    }
    picture().pixels.resize((410, 410)).save(tmp_path / "a.png")
    assert pairs.exists() and tokenizer_weights
    for name, tables in (("pretrain.json", TABLE), ("edit.json", TABLES["edit"])):
        known = [each for one in tables for each in one.sets]
        (tmp_path / name).write_text(json.dumps({each: there.get(each) for each in known}))
    stage = pretrain.stage(CONFIG, tmp_path, tmp_path / "pretrain.json", tmp_path / "qwen_vit_G.pt")
    assert len(fit(stage, tmp_path / stage.name, device="cpu").losses) == 2
    with pytest.raises(RebusError, match="needs the vision encoder's weights"):
        pretrain.stage(CONFIG, tmp_path, tmp_path / "pretrain.json")

    write_all(tmp_path)
    base = write_base(tmp_path)
    config = replace(INSTRUCT, speciality="edit", source_batch=2, optim=Optim(steps=2, precision="fp32"))
    stage = instruct.stage(config, tmp_path, tmp_path / "edit.json", base)
    result = fit(stage, tmp_path / stage.name, device="cpu")
    assert len(result.losses) == 2 and stage.data.sources.keys() == {"edits"}
    held = json.loads((tmp_path / stage.name / "config.json").read_text())
    assert instruct.speciality_of(tmp_path, held) == stage.config["speciality"]
