"""The language model's wrapper: new words, adapters, caches, int8; and text tokenizers."""

from __future__ import annotations

import struct

import pytest
import tokenizers
import torch
from tests import tiny
from tokenizers import models, pre_tokenizers, trainers

from rebus.errors import RebusError
from rebus.nn.lora import add_lora, lora_state, use_adapter
from rebus.nn.new_rows import CodebookRows, NewRows, RowInit, Rows, init_rows
from rebus.nn.running_sums import SummedWords
from rebus.nn.text_model import TextModel, build_causal_lm, own_names, quantize_int8, read_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer, FastTokenizer, TextStream, from_sentencepiece, read_tokenizer

KINDS = list(tiny.KINDS)


def logits(model: TextModel, ids_BL: torch.Tensor, attend=None) -> torch.Tensor:
    positions_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL)
    return model.logits(model.hidden(model.embed(ids_BL), positions_BL, attend))


def some_ids(model: TextModel, shape=(2, 9)) -> torch.Tensor:
    return torch.randint(model.vocabulary, shape, generator=tiny.generator(0))


# ------------------------------------------------------------------------------------------------ new words


@pytest.mark.parametrize("kind", KINDS)
def test_old_words_are_untouched_by_new_ones(kind):
    base = build_causal_lm(tiny.KINDS[kind], generator=tiny.generator(1)).eval()
    ids_BL = torch.randint(50, (2, 9), generator=tiny.generator(0))
    before = base(ids_BL).logits
    model = TextModel(base).extend(7, generator=tiny.generator(2))
    torch.testing.assert_close(logits(model, ids_BL)[..., :50], before)
    assert logits(model, ids_BL).shape == (2, 9, 57) and model.vocabulary == 57


def test_new_words_have_their_own_rows_and_tied_ones_one_parameter():
    apart, tied = tiny.text_model("llama"), tiny.text_model("llama", tied=True)
    assert sorted(n for n, _ in apart.named_parameters() if n.startswith("rows")) == [
        "rows.input.weight_VD",
        "rows.output.weight_VD",
    ]
    assert sum(p.numel() for n, p in tied.named_parameters() if n.startswith("rows")) == 7 * 32
    torch.testing.assert_close(tied.embed(torch.tensor([[50, 56]]))[0], tied.rows.input.table()[[0, 6]])


def test_rows_begin_as_asked():
    old_VD = torch.randn(50, 32, generator=tiny.generator(0)) + 1
    exact = init_rows(old_VD, 3, RowInit(mean=3.0, std=0.0), None)
    torch.testing.assert_close(exact, 3 * old_VD.mean(0).expand(3, -1))
    noise = init_rows(old_VD, 4000, RowInit(), tiny.generator(1))
    assert abs(noise.mean()) < 1e-3 and noise.std() == pytest.approx(0.02, rel=0.02)
    again = init_rows(old_VD, 4000, RowInit(), tiny.generator(1))
    assert torch.equal(noise, again)


def test_codebook_rows_are_a_projection_and_learn_through_it():
    codebook_VC = torch.randn(5, 4, generator=tiny.generator(0))
    rows = CodebookRows(codebook_VC, torch.randn(2, 32, generator=tiny.generator(1)))
    model = TextModel(build_causal_lm(tiny.KINDS["opt"]), NewRows(rows, Rows(torch.zeros(7, 32))))
    x_BLD = model.embed(torch.tensor([[50, 54, 55]]))
    torch.testing.assert_close(x_BLD[0, 0], rows.proj(codebook_VC[0]))
    torch.testing.assert_close(x_BLD[0, 2], rows.marks_VD[0])
    x_BLD.sum().backward()
    assert rows.proj.weight.grad is not None and not rows.codebook_VC.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_merging_changes_no_score(kind, tied):
    model = tiny.text_model(kind, tied=tied)
    ids_BL = some_ids(model)
    before = logits(model, ids_BL)
    merged = model.merge().eval()
    assert model.rows is None and not own_names(model)
    torch.testing.assert_close(merged(ids_BL).logits, before, atol=2e-5, rtol=1e-4)
    tables = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (tables[0] is tables[1]) == (tied and kind != "llama")
    assert merged.config.vocab_size == 57


def test_a_merged_model_is_written_and_read_in_the_published_layout(tmp_path):
    model = tiny.text_model("llama tied")
    ids_BL = some_ids(model)
    before = logits(model, ids_BL)
    model.merge().save_pretrained(tmp_path)
    read = read_causal_lm(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(read(ids_BL).logits, before, atol=2e-5, rtol=1e-4)


def test_reading_a_folder_is_strict(tmp_path):
    with pytest.raises(RebusError, match="holds no language model"):
        read_causal_lm(tmp_path)
    model = build_causal_lm(tiny.KINDS["llama"])
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(RebusError, match="missing keys: model.layers.1.mlp.up_proj.weight"):
        read_causal_lm(tmp_path)


def test_random_weights_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two = (build_causal_lm(tiny.KINDS["llama"], generator=tiny.generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


# ------------------------------------------------------------------------------------------------ adapters


def test_lora_begins_as_nothing_and_freezes_the_base():
    model = tiny.text_model("llama", lora=False)
    ids_BL = some_ids(model)
    before = logits(model, ids_BL)
    add_lora(model, rank=2)
    torch.testing.assert_close(logits(model.eval(), ids_BL), before)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(own_names(model)) and all("lora_" in n or n.startswith("rows.") for n in learning)
    assert sum("q_proj.lora_A" in name for name in learning) == 2  # one in each layer
    assert all(name.startswith("model.layers.") for name in lora_state(model))


def test_lora_on_what_is_not_there_names_what_is():
    model = tiny.text_model("opt", lora=False)
    with pytest.raises(RebusError, match="projections are fc1, fc2, k_proj"):
        add_lora(model, targets=("query_key_value",))


def test_one_of_two_adapters_speaks():
    model = tiny.text_model("llama")
    ids_BL = some_ids(model)
    one = logits(model, ids_BL)
    add_lora(model, rank=2, adapter="other")
    torch.testing.assert_close(logits(model.eval(), ids_BL), one)
    use_adapter(model, "other")  # begins as nothing
    assert not torch.allclose(logits(model, ids_BL), one)
    use_adapter(model, "default")
    torch.testing.assert_close(logits(model, ids_BL), one)


def test_int8_weights_say_nearly_the_same():
    pytest.importorskip("torchao")
    model = tiny.text_model("llama")
    ids_BL = some_ids(model)
    before = logits(model, ids_BL)
    quantize_int8(model)
    after = logits(model, ids_BL)
    assert not torch.equal(before, after)
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_rows_stay_float32_beside_a_bfloat16_base(kind):
    model = TextModel(build_causal_lm(tiny.KINDS[kind], dtype=torch.bfloat16, generator=tiny.generator(1)))
    model.extend(7, generator=tiny.generator(2))
    add_lora(model, rank=2, dropout=0.0, **tiny.lora_targets(kind))
    own = dict(model.named_parameters())
    assert {own[name].dtype for name in own_names(model)} == {torch.float32}
    ids_BL = some_ids(model)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = logits(model, ids_BL)
        assert scores.dtype == torch.bfloat16 and scores.isfinite().all()
        scores.float().logsumexp(-1).sum().backward()
    assert all(own[name].grad is not None and own[name].grad.dtype == torch.float32 for name in own_names(model))


# ------------------------------------------------------------------------------------------------ the row cache


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_lengths_read_as_alone(kind):
    model = tiny.text_model(kind)
    cache = model.row_cache(4, 20)
    long, short = some_ids(model, (1, 12)), some_ids(model, (1, 5))
    whole = {3: logits(model, long)[0], 1: logits(model, short)[0]}

    def read(rows, ids_SL):
        cache.begin(rows, ids_SL.shape[1])
        hidden = model.hidden(model.embed(ids_SL), cache.positions(ids_SL.device), cache.mask(ids_SL.device), cache)
        cache.end()
        return model.logits(hidden)

    def close(got, row, start):
        torch.testing.assert_close(got, whole[row][start : start + len(got)], atol=2e-5, rtol=1e-4)

    with torch.no_grad():
        close(read([3], long[:, :7])[0], 3, 0)
        close(read([1], short[:, :2])[0], 1, 0)
        both = read([1, 3], torch.cat([short[:, 2:4], long[:, 7:9]]))  # rows apart, at different lengths
        close(both[0], 1, 2)
        close(both[1], 3, 7)
        cache.copy(3, 2)
        both = read([2, 3], long[:, 9:10].expand(2, -1))  # neighbours: a view of the cache
        close(both[0], 3, 9)
        close(both[1], 3, 9)
        cache.truncate(3, 6)
        close(read([3], long[:, 6:12])[0], 3, 6)
        cache.truncate(1)
        close(read([1], short)[0], 1, 0)
    with pytest.raises(IndexError, match="row 3 holds 12 of 20"):
        cache.begin([3], 9)


# ------------------------------------------------------------------------------------------------ text tokenizers


def trained() -> FastTokenizer:
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the cat sat on the mat, the other cat did not"] * 4, trainer)
    return FastTokenizer(raw)


def sentencepiece(pieces: list[tuple[str, float, int]]) -> bytes:
    """A SentencePiece file: field 1 of the message is a piece, itself of piece, score and kind."""
    out = b""
    for piece, score, kind in pieces:
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        out += b"\x0a" + bytes([len(body)]) + body
    return out + b"\x12\x04\x0a\x02hi"  # the trainer's settings, of no interest


LLAMA_PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("▁c", -1.0, 1),
    ("at", -2.0, 1),
    ("▁cat", -3.0, 1),
    ("▁", -4.0, 1),
    ("c", -5.0, 1),
    ("a", -6.0, 1),
    ("t", -7.0, 1),
]


def llama() -> FastTokenizer:
    return FastTokenizer(from_sentencepiece(sentencepiece(LLAMA_PIECES)))


@pytest.mark.parametrize("text", [ByteTokenizer(), trained(), llama()], ids=["bytes", "byte-level", "sentencepiece"])
@pytest.mark.parametrize("said", ["the cat", " cat  at\n", "ü🐈‍⬛ 日本", "<s> <|im_end|></s>", "", "\ufffd x"])
def test_text_survives_and_special_strings_stay_text(text, said):
    ids = text.encode(said)
    assert text.decode(ids) == said
    assert not set(ids) & set(text.specials.values())
    assert text.text_V[ids].all() and len(text.text_V) == text.words
    assert not text.text_V[list(text.specials.values())].any()


@pytest.mark.parametrize("text", [ByteTokenizer(), trained(), llama()], ids=["bytes", "byte-level", "sentencepiece"])
def test_streamed_text_is_whole_characters_and_the_whole_text(text):
    said = "a 日本 ü🐈‍⬛ at the end é"
    stream = TextStream(text)
    pieces = [stream.push([i]) for i in text.encode(said)]
    assert "".join(pieces) == said and not any("\ufffd" in piece for piece in pieces)
    assert stream.flush() == ""
    stream = TextStream(text)
    cut = [i for i in text.encode("x🐈")][:-1]
    assert "".join(stream.push([i]) for i in cut).endswith("x")
    assert set(stream.flush()) == {"\ufffd"}


def test_llama_files_are_read_in_the_old_way():
    text = llama()
    names = [text._tokenizer.id_to_token(i) for i in text.encode("cat at")]
    assert names == ["▁cat", "▁", "at"]  # the best-scored merges first, and a space before the segment
    assert [text._tokenizer.id_to_token(i) for i in text.encode("é")] == ["▁", "<0xC3>", "<0xA9>"]


def test_tokenizer_folders(tmp_path):
    with pytest.raises(RebusError, match="neither tokenizer.json nor tokenizer.model"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(LLAMA_PIECES))
    assert read_tokenizer(tmp_path).words == len(LLAMA_PIECES)
    trained()._tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).specials == {"<s>": 0, "<|im_end|>": 1}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RebusError, match="cannot be read"):
        read_tokenizer(tmp_path)


def test_codes_that_add_up_are_read_as_the_sum_of_their_image_so_far() -> None:
    words = SummedWords(first=50, count=4)
    ids = torch.tensor([[50, 52, 7, 53, 51, 50, 3], [4, 4, 51, 51, 60, 61, 52]])
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
    wanted = x.clone()
    for row, span in ((0, range(0, 2)), (0, range(3, 6)), (1, range(2, 4)), (1, range(6, 7))):
        for place in span:
            wanted[row, place] = x[row, span.start : place + 1].sum(0)
    torch.testing.assert_close(words.sums(x, ids), wanted)
    assert words.open_end([50, 7, 51, 53]) == [51, 53] and words.open_end([50, 7]) == [] and words.open_end([]) == []


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_read_bit_by_bit_is_what_is_read_at_once(merged: bool) -> None:
    base = build_causal_lm(tiny.KINDS[KINDS[0]], generator=tiny.generator(1)).eval()
    model = TextModel(base).extend(8, generator=tiny.generator(0))
    model.summed = SummedWords(first=50, count=6)
    ids = [3, 50, 51, 55, 56, 1, 52, 52]
    before = model.embed(torch.tensor([ids]))[0]
    if merged:
        model.merge()
    whole = model.embed(torch.tensor([ids]))[0]
    torch.testing.assert_close(whole, before)
    for cut in range(len(ids)):
        torch.testing.assert_close(model.embed_after(ids[:cut], ids[cut:]), whole[cut:])
    alone = model.embed(torch.tensor([[52]]))[0, 0]
    torch.testing.assert_close(whole[7], 2 * alone)
