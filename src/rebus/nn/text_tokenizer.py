"""Text ↔ word ids, for the three kinds of tokenizer in use, and text that comes out piece by piece.

What a user writes is never read as a special token: `encode` treats `<|im_end|>` in a question as six characters of
text. Special tokens enter by id (`specials`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors
from torch import Tensor

from rebus.errors import RebusError


class TextTokenizer(Protocol):
    """Text ↔ ids 0..words-1. Each call of `encode` is a segment of its own, as between two special tokens."""

    words: int
    specials: Mapping[str, int]

    @property
    def text_V(self) -> Tensor:
        """bool over the `words`: which are ordinary text."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a segment of plain text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a segment; bytes that are no UTF-8 become U+FFFD."""
        ...


class ByteTokenizer:
    """Every byte is a word; `specials` follow. For tests, and for models small enough to learn from bytes."""

    def __init__(self, specials: Sequence[str] = ("<unk>", "<s>", "</s>")) -> None:
        self.specials: Mapping[str, int] = {token: 256 + index for index, token in enumerate(specials)}
        self.words = 256 + len(specials)

    @cached_property
    def text_V(self) -> Tensor:
        """bool over the words: the bytes."""
        return torch.arange(self.words) < 256

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class FastTokenizer:
    """A tokenizer of the `tokenizers` library, as in a folder's `tokenizer.json`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # special strings in a user's text stay text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        self.specials: Mapping[str, int] = {token.content: i for i, token in added.items() if token.special}
        self.words: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def text_V(self) -> Tensor:
        """bool over the words: all but the special ones."""
        mask_V = torch.ones(self.words, dtype=torch.bool)
        mask_V[list(self.specials.values())] = False
        return mask_V

    def encode(self, text: str) -> list[int]:
        """The ids of a segment of plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a segment."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def read_tokenizer(folder: Path | str) -> FastTokenizer:
    """The tokenizer of a model folder: `tokenizer.json`, or the older `tokenizer.model` of LLaMA.

    Raises RebusError when there is neither, or it cannot be read.
    """
    folder = Path(folder)
    fast, sentencepiece = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if fast.exists():
            return FastTokenizer(tokenizers.Tokenizer.from_file(str(fast)))
        if sentencepiece.exists():
            return FastTokenizer(from_sentencepiece(sentencepiece.read_bytes()))
    except Exception as error:  # the library raises bare Exception
        raise RebusError(f"The tokenizer in {folder} cannot be read: {error}. Fetch it again.") from error
    raise RebusError(
        f"{folder} holds no text tokenizer: neither tokenizer.json nor tokenizer.model is there. "
        "Name the folder that the language model was published in."
    )


def write_tokenizer(
    text: FastTokenizer,
    folder: Path,
    added: Mapping[str, int],
    *,
    special: Collection[str],
    bos: str | None,
    eos: str,
    pad: str,
) -> None:
    """The tokenizer with words `added` behind its own, as the files of a Hugging Face folder. `special` are those of
    them that are no text; encoding begins with `bos`, as LLaMA's does.

    Raises RebusError when an id is taken already.
    """
    whole = tokenizers.Tokenizer.from_str(text._tokenizer.to_str())
    for name, place in sorted(added.items(), key=lambda item: item[1]):
        size = whole.get_vocab_size(with_added_tokens=True)
        # a model's table may be longer than its tokenizer (OPT: 50,272 and 50,265)
        whole.add_special_tokens([f"<unused_{number}>" for number in range(size, place)])
        whole.add_tokens([tokenizers.AddedToken(name, special=name in special, normalized=False)])
        if whole.token_to_id(name) != place:
            raise RebusError(
                f"The new word {name} has id {place}, but the text tokenizer has {size} words already and gives it "
                f"{whole.token_to_id(name)}. Export with the tokenizer that the language model was trained with."
            )
    if bos is not None:
        start = (bos, whole.token_to_id(bos))
        whole.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[start])
    whole.encode_special_tokens = False
    whole.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": _unknown(text)}
    named: dict[str, object] = {kind: name for kind, name in names.items() if name is not None}
    named["additional_special_tokens"] = sorted(special, key=lambda name: added[name])
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    for file, content in (
        ("tokenizer_config.json", about),
        ("special_tokens_map.json", named),
        ("added_tokens.json", dict(added)),
    ):
        (folder / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _unknown(text: FastTokenizer) -> str | None:
    return next((name for name in ("<unk>", "[UNK]") if name in text.specials), None)


# ---------------------------------------------------------------------------------------------- text as it comes


class TextStream:
    """Ids of one segment in, text out as soon as it is certain: never half a character.

    What was given out is always the beginning of `decode(all ids)`; `flush` gives the rest.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain with these ids."""
        self._ids += ids
        return self._upto(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def flush(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        return self._upto(self._tokenizer.decode(self._ids))

    def _upto(self, text: str) -> str:
        new = text[self._given :]
        self._given += len(new)
        return new


# ---------------------------------------------------------------------------------------------- LLaMA's older files

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def from_sentencepiece(data: bytes) -> tokenizers.Tokenizer:
    """A LLaMA `tokenizer.model` as a fast tokenizer, with the behaviour that SEED, LaVIT and SEED-X were trained with:
    every segment of text gets a space in front ("legacy", transformers 4.30), and decoding takes it off again."""
    pieces = list(_pieces(data))
    vocabulary = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    ranks = {piece: score for piece, score, kind in pieces if kind == NORMAL}
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, score in ranks.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    model = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in sorted(merges)],
        unk_token=next(piece for piece, _, kind in pieces if kind == UNKNOWN),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)])
    return tokenizer


def _pieces(data: bytes) -> Iterator[tuple[str, float, int]]:
    """(piece, score, kind) of each word of a SentencePiece file: field 1 of the message, itself of fields 1, 2, 3."""
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            parts: dict[int, bytes | int] = dict(_fields(value))
            piece, score = parts[1], parts.get(2, b"\0\0\0\0")
            kind = parts.get(3, NORMAL)
            if isinstance(piece, bytes) and isinstance(score, bytes) and isinstance(kind, int):
                yield piece.decode(), struct.unpack("<f", score)[0], kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protocol-buffers message, in order: varints as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                yield tag >> 3, varint()
                continue
            case 1:
                size = 8
            case 2:
                size = varint()
            case 5:
                size = 4
            case kind:
                raise RebusError(f"A field of kind {kind} is in no SentencePiece file. Fetch the file again.")
        yield tag >> 3, data[at : at + size]
        at += size


def text_file(folder: Path) -> dict[str, bytes]:
    """The text tokenizer's file. LLaMA's older one is preferred, because text must be cut as it was in training: with a
    space in front of every segment, which newer conversions of it leave out."""
    name = next(name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).exists())
    return {name: (folder / name).read_bytes()}


def tokenizer_files(text: TextTokenizer) -> dict[str, bytes]:
    """The files that `read_tokenizer` makes the same tokenizer of; none for one that reads bytes, which needs none."""
    return {"tokenizer.json": text._tokenizer.to_str().encode()} if isinstance(text, FastTokenizer) else {}
