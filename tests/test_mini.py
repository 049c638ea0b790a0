"""The shared parts of the mini family: batches that resume, arrays written once, weights read from GGUF, code rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebus.document import Document, assistant, user
from rebus.mini import llm
from rebus.mini.bank import IndexBatches, cached, in_batches
from rebus.mini.frozen import fingerprint
from rebus.mini.llm import _half_split
from rebus.mini.replay import WithReplies, base_replies, prompts, whole
from rebus.mini.vision import CONFIGS, MiniVision, PrincipalComponents
from rebus.nn.caption_rows import linear_from_captions, rows_from_captions, words_at
from rebus.nn.name_rows import NameFit, linear_from_names, names_at, rows_from_names
from rebus.nn.text_tokenizer import ByteTokenizer


def test_index_batches_cover_an_epoch_and_resume_to_the_batch() -> None:
    whole = list(islice(IndexBatches(10, 3, seed=4), 7))
    assert all(len(set(np.concatenate(whole[k : k + 3]))) == 9 for k in (0, 3))
    assert not np.array_equal(np.concatenate(whole[:3]), np.concatenate(whole[3:6]))
    first = IndexBatches(10, 3, seed=4)
    begun = list(islice(first, 4))
    rest = IndexBatches(10, 3, seed=4)
    rest.load_state_dict(first.state_dict())
    for got, want in zip(begun + list(islice(rest, 3)), whole, strict=True):
        np.testing.assert_array_equal(got, want)


def test_two_processes_may_make_the_base_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, cache = tmp_path / "package", tmp_path / "cache"
    package.mkdir()
    (package / "model.gguf").touch()
    monkeypatch.setattr(llm.packages, "fetch", lambda *_: package)

    def other_is_faster(file: Path, folder: Path) -> None:
        for place in (folder, cache / llm.BASE_LLM):
            place.mkdir(exist_ok=True)
            (place / "config.json").write_text("{}")

    def other_failed(file: Path, folder: Path) -> None:
        (cache / llm.BASE_LLM / "more").mkdir(parents=True)

    monkeypatch.setattr(llm, "convert_gguf", other_failed)
    with pytest.raises(OSError, match="not empty"):
        llm.base_llm(cache)
    monkeypatch.setattr(llm, "convert_gguf", other_is_faster)
    assert llm.base_llm(cache) == cache / llm.BASE_LLM
    assert [path.name for path in cache.iterdir()] == [llm.BASE_LLM]  # nothing half made is left behind


def test_a_cached_array_is_built_once_and_whole(tmp_path: Path) -> None:
    calls: list[int] = []

    def build() -> np.ndarray:
        calls.append(1)
        return in_batches(lambda i: torch.from_numpy(i).float()[:, None] * 2, 10, size=4)

    for _ in range(2):
        array = cached(tmp_path / "a" / "b.npy", build)
        np.testing.assert_array_equal(array[:, 0], np.arange(10) * 2)
    assert calls == [1] and array.dtype == np.float16

    def broken() -> np.ndarray:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cached(tmp_path / "c.npy", broken)
    assert not (tmp_path / "c.npy").exists()


def test_a_cached_array_is_built_anew_when_what_made_it_has_changed(tmp_path: Path) -> None:
    path, made = tmp_path / "x.npy", []

    def build_as(value: int) -> Callable[[], np.ndarray]:
        return lambda: made.append(value) or np.full(3, value)  # type: ignore[func-returns-value]

    first, second = (fingerprint(nn.Linear(2, 2)) for _ in range(2))
    assert first != second
    for value, of in ((1, first), (2, first), (3, second), (4, second), (5, first)):
        array = cached(path, build_as(value), of=of)
    assert made == [1, 3, 5] and array.tolist() == [5, 5, 5]
    # an array of unknown origin is not trusted
    path.with_suffix(".of").unlink()
    assert cached(path, build_as(6), of=first).tolist() == [6, 6, 6]


def test_a_fingerprint_knows_names_shapes_formats_and_order() -> None:
    layer = nn.Linear(2, 2, bias=False)
    weight = layer.weight
    prints = {
        fingerprint(layer),
        fingerprint(weight),
        fingerprint(weight.flatten()),
        fingerprint(weight.half()),
        fingerprint(layer, "a"),
        fingerprint("a", layer),
    }
    assert len(prints) == 6 and fingerprint(layer) in prints
    with torch.no_grad():
        weight[0, 0] += 1
    assert fingerprint(layer) not in prints


def test_rotary_halves_are_put_back_in_order() -> None:
    heads, width, into = 2, 4, 3
    ours = np.arange(heads * width * into).reshape(heads * width, into)
    # as GGUF stores it: within each head, row i of the first half is followed by row i of the second
    theirs = ours.reshape(heads, 2, width // 2, into).swapaxes(1, 2).reshape(heads * width, into)
    np.testing.assert_array_equal(_half_split(theirs, heads), ours)


def test_the_embedding_of_mini_vit_has_components_and_a_vector_of_meaning_and_knows_places() -> None:
    torch.manual_seed(0)
    config = CONFIGS["mini"].vision
    vision = MiniVision(config).eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        _, embedding = vision(torch.cat([pixels, pixels.flip(-1)]))
    assert embedding.shape == (4, config.components + config.contrast) == (4, config.embedding)
    meaning = embedding[:, config.components :]
    torch.testing.assert_close(meaning.square().mean(1).sqrt(), torch.ones(4))
    for half in (embedding[:, : config.components], meaning):
        assert (half[0] - half[2]).abs().max() > 0.05  # a mirrored picture is another picture


def test_principal_components_count_as_they_do_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pixels = torch.randn(200, 6, generator=generator) @ torch.randn(6, 27, generator=generator)
    components = PrincipalComponents(pixels + 3, 6)
    looks = components((pixels + 3).view(200, 3, 3, 3))
    torch.testing.assert_close(looks.square().mean(), torch.tensor(1.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(components.picture(looks), pixels + 3, atol=1e-3, rtol=0)
    moved = looks + torch.randn(looks.shape, generator=generator)
    in_pixels = (components.picture(moved) - components.picture(looks)).square().sum()
    torch.testing.assert_close(in_pixels, (moved - looks).square().sum() * components.square)


def test_code_rows_begin_as_the_words_of_their_pictures() -> None:
    text = ByteTokenizer()
    table = torch.randn(text.words, 16, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 2, 0]])
    captions = ["aa", "ab", "zz"]
    inputs, outputs = rows_from_captions(table, text, counts, captions, ridge=1e-3)
    centre = table.mean(0)
    spread = (table - centre).square().sum(1).mean()
    for rows in (inputs, outputs):
        assert rows.shape == (5, 16)
        torch.testing.assert_close((rows - centre).square().sum(1).mean(), spread)
        torch.testing.assert_close(rows[4], centre)  # code 4 never occurs
    words = torch.stack([table[text.encode(" " + caption)].mean(0) for caption in captions])
    words -= words.mean(0)
    # a picture's input rows sum to its caption; a code's output row is the mean of its pictures' captions
    summed = counts @ (inputs - centre)
    assert torch.cosine_similarity(summed, words).min() > 0.99
    assert torch.cosine_similarity(outputs[0] - centre, words[:2].mean(0), dim=0) > 0.99
    assert torch.cosine_similarity(outputs[3] - centre, words[2], dim=0) > 0.99


def test_a_way_in_begins_as_the_words_of_the_pictures() -> None:
    text, generator = ByteTokenizer(), torch.Generator().manual_seed(0)
    table = torch.randn(text.words, 16, generator=generator)
    lengths, captions = [2, 1, 3, 2], ["aa", "ab", "zz", "qx"]
    x = torch.randn(sum(lengths), 12, generator=generator)
    weight, bias = linear_from_captions(table, text, x, lengths, captions, ridge=1e-5)
    made = torch.nn.functional.linear(x, weight, bias)
    centre, spread = words_at(table)
    torch.testing.assert_close((made - centre).square().sum(1).mean().sqrt(), spread)
    words = torch.stack([table[text.encode(" " + caption)].mean(0) for caption in captions])
    words -= words.mean(0)
    means = torch.stack([part.mean(0) for part in made.split(lengths)]) - centre
    assert torch.cosine_similarity(means, words).min() > 0.99


def named_pictures(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of pictures of four things, four places of four codes each; half of the places say what thing it is, and how,
    a codebook in which entries that say the same look alike; the things."""
    name_I = torch.arange(200) % 4
    ids_IN = torch.randint(4, (200, 4), generator=generator)
    ids_IN[:, :2] = torch.stack([name_I, (name_I + 1) % 4], dim=1)
    thing_4C, noise_4C = torch.randn(4, 12, generator=generator), torch.randn(8, 12, generator=generator)
    book_KC = torch.cat([thing_4C, thing_4C.roll(1, 0), noise_4C])
    return ids_IN + torch.arange(4) * 4, name_I, book_KC


def test_rows_of_codes_begin_as_the_names_of_their_pictures() -> None:
    text, generator = ByteTokenizer(), torch.Generator().manual_seed(0)
    table, names = torch.randn(text.words, 16, generator=generator), ["aa", "bc", "zz", "qx"]
    ids, which, book = named_pictures(generator)
    fit = NameFit(steps=200, batch=64)
    made = rows_from_names(table, text, book, ids, which, names, fit=fit, generator=generator)
    again = rows_from_names(table, text, book, ids, which, names, fit=fit, generator=torch.Generator().manual_seed(1))
    centre, spread = words_at(table)
    torch.testing.assert_close((made - centre).square().sum(1).mean().sqrt(), spread)
    words = names_at(table, text, names)
    for rows in (made, again):
        summed = torch.nn.functional.normalize((rows - centre)[ids].sum(1), dim=-1)
        assert torch.equal((summed @ words.T).argmax(1), which)
        # the same entry has the same row wherever it stands: the layer is shared
        torch.testing.assert_close(rows[:4], rows[4:8].roll(-1, 0), atol=1e-5, rtol=1e-5)


def test_rows_that_are_read_as_sums_have_sums_as_words_lie() -> None:
    text, generator = ByteTokenizer(), torch.Generator().manual_seed(0)
    table, names = torch.randn(text.words, 16, generator=generator), ["aa", "bc", "zz", "qx"]
    ids, which, book = named_pictures(generator)

    def begin(place: float) -> torch.Tensor:
        fit, own = NameFit(steps=200, batch=64, place=place), torch.Generator().manual_seed(1)
        return rows_from_names(table, text, book, ids, which, names, fit=fit, summed=True, generator=own)

    made = begin(0.0)
    centre, spread = words_at(table)
    sums = made[ids].sum(1) - centre
    torch.testing.assert_close(sums.square().sum(1).mean().sqrt(), spread)
    named = (torch.nn.functional.normalize(sums, dim=-1) @ names_at(table, text, names).T).argmax(1)
    assert torch.equal(named, which)
    # what is added tells places apart, and is the same for all images
    marks = (begin(0.5) - made)[ids].cumsum(1)
    torch.testing.assert_close(marks, marks[:1].expand_as(marks), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(marks.norm(dim=-1), (spread / 2).expand(marks.shape[:2]), atol=1e-4, rtol=1e-4)
    assert torch.pdist(marks[0]).min() > 0.1


def test_a_way_in_begins_as_the_names_of_pictures_it_has_not_seen() -> None:
    text, generator = ByteTokenizer(), torch.Generator().manual_seed(0)
    table, names = torch.randn(text.words, 16, generator=generator), ["aa", "bc", "zz", "qx"]
    thing, which = torch.randn(4, 12, generator=generator), torch.arange(300) % 4
    real = torch.rand(300, 6, generator=generator) < 0.7
    real[:, 0] = True
    tokens = (thing[which, None] + torch.randn(300, 6, 12, generator=generator)) * torch.logspace(-2, 2, 12) + 3
    tokens[~real] = torch.nan
    tokens = tokens.nan_to_num(1e4)  # what is not there must not count
    seen, fit = slice(0, 200), NameFit(steps=200, batch=64)
    weight, bias = linear_from_names(
        table, text, tokens[seen], real[seen], which[seen], names, fit=fit, generator=generator
    )
    made = torch.nn.functional.linear(tokens, weight, bias)
    centre, spread = words_at(table)
    flat = made[seen][real[seen]]
    torch.testing.assert_close(flat.mean(0), centre, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close((flat - centre).square().sum(1).mean().sqrt(), spread)
    mean = torch.stack([x[there].mean(0) for x, there in zip(made, real, strict=True)]) - centre
    named = (torch.nn.functional.normalize(mean, dim=-1) @ names_at(table, text, names).T).argmax(1)
    assert (named == which)[200:].float().mean() > 0.9


def test_plain_replies_are_mixed_in_by_position_and_none_is_asked_in_the_evaluation(tmp_path: Path) -> None:
    held = json.loads(files("rebus.evals").joinpath("plain_text.json").read_text())
    assert len(set(prompts())) == len(prompts()) >= 400 and not set(prompts()) & set(held["prompts"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "base_replies.json").write_text(json.dumps([["What is the use of bees?", "Honey."]]))
    replies = base_replies(tmp_path, None)  # type: ignore[arg-type]  # nothing is asked again
    emoji = Document((user("Draw a cat."), assistant("No.")))
    mixed = WithReplies([emoji] * 2000, replies, share=0.1, seed=3)
    plain = [mixed[i].messages[1].text == "Honey." for i in range(2000)]
    assert 150 < sum(plain) < 250 and plain == [mixed[i].messages[1].text == "Honey." for i in range(2000)]
    assert whole("One. Two! And thr") == "One. Two!" and whole("no end") == ""
