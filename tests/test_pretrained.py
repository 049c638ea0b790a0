"""Saved systems that stand alone, and folders and hub ids in the place of names: what is loaded says what was saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tests import tiny
from tokenizers import decoders, models, pre_tokenizers

from rebus.checkpoint import config_from_json, load_system
from rebus.errors import RebusError
from rebus.mini.llm import SPECIAL_BYTES
from rebus.nn.text_model import quantize_int8
from rebus.nn.text_tokenizer import FastTokenizer
from rebus.nn.whole import whole_config, whole_tensors
from rebus.packages import embedded
from rebus.papers.seed.variants import VARIANTS, SeedConfig
from rebus.system import load
from rebus.system.loading import papers_config

REPORT = {
    "recipe": {"split": "val", "command": "rebus eval seed:tiny"},
    "figures": [
        {"name": "draw/r_at_1", "value": 0.25, "chance": 0.0156, "shuffled": None, "ceiling": 1.0, "n": 64},
        {"name": "rebuild/error", "value": 1234.5, "better": "lower", "n": 64},
    ],
}


def byte_words() -> FastTokenizer:
    """A tokenizer with a file, whose words and ids are those of the one that reads bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves; the rest follow
    characters = {byte: chr(byte) for byte in plain}
    characters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in characters)}
    assert sorted(characters.values()) == alphabet
    made = tokenizers.Tokenizer(models.BPE(vocab={characters[b]: b for b in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL_BYTES))
    return FastTokenizer(made)


def replies(system, seed=3):
    """What a system answers to every kind of document, and how its pictures look."""
    made = []
    for modality in ("image", "any"):
        documents = tiny.documents()
        dice = [tiny.generator(seed + n) for n in range(len(documents))]
        messages = system.generate(documents, modality=modality, sampling=tiny.WARM, generators=dice)
        made += [(tiny.said(message), [image.pixels.tobytes() for image in message.images]) for message in messages]
    return made


@pytest.mark.parametrize("text", ["bytes", "tokenizer"])
@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_what_is_loaded_says_what_was_saved(paper, text, tmp_path):
    system = tiny.fresh(paper)
    if text == "tokenizer":
        system.grammar.text = byte_words()
    before = replies(system)
    saved = system.save_pretrained(tmp_path / "whole")
    assert saved.base is None and set(saved.files) == {"tokenizer", "lm", "detokenizer"} | (
        {"text"} if text == "tokenizer" else set()
    )
    load_system(tmp_path / "whole").verify()
    again = load(tmp_path / "whole", dtype=torch.float32)
    assert again.name == f"{paper}:tiny"
    assert (again.lm.llm.rows is None) == (text == "tokenizer")  # new words have become words of the one table
    assert replies(again) == before == replies(system)  # and saving changed nothing


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_whole_tensors_are_those_of_a_merge(kind, tied):
    tied = tied and kind != "llama"
    model = tiny.text_model(kind, tied=tied)
    with pytest.raises(RebusError, match="Call `fold_lora`"):
        whole_tensors(model)
    model.fold_lora()
    config, tensors = whole_config(model), whole_tensors(model)
    assert model.rows is not None
    base = model.merge()
    assert config["vocab_size"] == base.config.vocab_size == 57
    assert config["tie_word_embeddings"] == base.config.tie_word_embeddings
    merged = model.state_dict()
    assert set(tensors) == set(merged)
    assert all(torch.equal(tensors[name], merged[name]) for name in merged)


def test_the_card_shows_figures_and_sheets(tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.json").write_text(json.dumps(REPORT))
    (report / "draw.png").write_bytes(b"a picture")
    system = tiny.system("seed")
    system.save_pretrained(tmp_path / "s", report=report, licence="apache-2.0")
    card = (tmp_path / "s/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "- arxiv:2310.01218\n" in card
    assert "| draw/r_at_1 | 0.250 | 0.016 | – | 1.000 | 64 |" in card and "| rebuild/error ↓ | 1,234 |" in card
    assert "![draw](draw.png)" in card and (tmp_path / "s/draw.png").read_bytes() == b"a picture"
    count = sum(x.numel() for x in system.lm.llm.state_dict().values())
    assert f"| lm | {count:,} |" in card
    system.save_pretrained(tmp_path / "t")
    assert "None were given" in (tmp_path / "t/README.md").read_text()
    for broken in ("[]", '{"recipe": {}, "figures": [{"name": "x"}]}', "no"):
        (report / "report.json").write_text(broken)
        with pytest.raises(RebusError, match="holds no report that can be read"):
            system.save_pretrained(tmp_path / "u", report=report)
    assert not (tmp_path / "u").exists()


def test_what_cannot_be_saved(tmp_path):
    system = tiny.fresh("lavit")
    (tmp_path / "s").mkdir()
    with pytest.raises(RebusError, match="There is something at"):
        system.save_pretrained(tmp_path / "s")
    with pytest.raises(RebusError, match="without its tokenizer"):
        load("lavit:tiny", parts=("lm",)).save_pretrained(tmp_path / "t")
    system.config = None
    with pytest.raises(RebusError, match="Only what `load` returned"):
        system.save_pretrained(tmp_path / "t")
    eighth = tiny.text_model("llama", lora=False)
    quantize_int8(eighth)
    with pytest.raises(RebusError, match="held in int8"):
        whole_tensors(eighth)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_system_without_a_detokenizer_is_saved_without_one(tmp_path):
    half = load("seed_x:tiny", parts=("tokenizer", "lm"))
    assert set(half.save_pretrained(tmp_path / "s").files) == {"tokenizer", "lm"}
    assert load(tmp_path / "s", parts=("tokenizer", "lm")).detokenizer is None
    with pytest.raises(RebusError, match="no weights for the part 'detokenizer'"):
        load(tmp_path / "s")


def test_a_hub_id_is_fetched_without_pickles_or_code(tmp_path, monkeypatch):
    tiny.system("seed").save_pretrained(tmp_path / "s")
    asked = []

    def fetch(repo, **options):
        asked.append((repo, options["revision"], options["allow_patterns"]))
        return str(tmp_path / "s")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    system = load("someone/their-seed", revision="v2", parts=("tokenizer",))
    assert system.name == "seed:tiny" and system.lm.llm.device.type in ("meta", "cpu")
    ((repo, revision, patterns),) = asked
    assert (repo, revision) == ("someone/their-seed", "v2")
    assert not any(pattern.endswith((".py", ".bin", ".pt", ".pkl", "*")) for pattern in patterns)
    monkeypatch.chdir(tmp_path)
    assert load("s", parts=("tokenizer",)).name == load("./s", parts=("tokenizer",)).name == "seed:tiny"
    assert len(asked) == 1  # a folder that is there is not asked for
    with pytest.raises(RebusError, match="There is no folder ./gone"):
        load("./gone")
    with pytest.raises(RebusError, match="no folder a/b/c"):
        load("a/b/c")
    with pytest.raises(RebusError, match="Give one of the two"):
        load("./s", weights="other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "os.path:x"}, "does not decide what is imported"),
        ({"name": "nobody:x"}, "papers of this library are"),
        ({"base": "../elsewhere"}, "outside of its folder"),
        ({"files": {"lm": {"../lm.safetensors": "0"}}}, "outside of its folder"),
    ],
)
def test_a_folder_is_not_trusted(change, words, tmp_path):
    tiny.system("seed").save_pretrained(tmp_path / "s")
    path: Path = tmp_path / "s/system.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RebusError, match=words):
        load(tmp_path / "s")


def test_embedded_weights_are_read_with_the_config_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = load_system(embedded("seed-mini"))
    trained = config_from_json(SeedConfig, saved.config)
    monkeypatch.setitem(VARIANTS, "mini", replace(trained, tokenizer=replace(trained.tokenizer, codebook_size=64)))
    assert papers_config("seed:mini")[1] == trained
    nowhere = replace(trained, weights="never-trained")
    monkeypatch.setitem(VARIANTS, "mini", nowhere)
    assert papers_config("seed:mini")[1] == nowhere
