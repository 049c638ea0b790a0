"""SEED's training strings: every sample of the golden file, made of its record by our templates and spelt by our grammar."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import torch
from tests.parity.golden import Golden
from tests.test_grammar_seed import grammar, written

from rebus.data.interleaved import rearrange
from rebus.data.records import Record, Template
from rebus.document import Document, Image, assistant, user
from rebus.papers.seed import templates
from rebus.visual import Codes

PER_IMAGE = 32


def check_prompts(golden: Golden) -> None:
    """The whole string, what of it is learned, and its length, for every sample of the file."""
    one = grammar()
    for sample in golden.json:
        kind = sample["kind"]
        plain = kind.startswith("pretrain.")
        everything = sample["supervised"] == sample["text"]
        options = {"template": "plain" if plain else "chat", "loss": "paper" if everything or not plain else "reply"}
        said = [
            (written(one, document, **options), len(one.serialize(document, **options))) for document in made(sample)
        ]
        assert ((sample["text"], sample["supervised"]), sample["n_tokens_units"]) in said, f"{kind}: {sample['text']!r}"


def made(sample: dict[str, Any]) -> list[Document]:
    """What may become of a sample: a template that draws from several phrasings gives each."""
    fields, options = sample["sample"], sample["options"]
    match sample["kind"]:
        case "pretrain.interleaved":
            both = zip(fields["texts"], fields["image_ids"], strict=True)
            page = Document((assistant(*(image(ids) if text is None else text for text, ids in both)),))
            rules = {"images": options["max_images"], "swap": options["reverse_ratio"]}
            return [rearrange(page, Random(0), **rules)]
        case "sft.interleaved":  # chat messages, which no template touches
            return [Document((user(fields["instruction"]), assistant(*parts(fields["response"]))))]
        case kind:
            template, names = KINDS[kind]
            record = Record(images(fields), {ours: fields[theirs] for ours, theirs in names.items()})
            if kind == "sft.story":
                record = Record(record.images, {"captions": [fields[f"caption{n}"] for n in range(5)]})
            return [template(record, Random(seed)) for seed in range(60)]


KINDS: dict[str, tuple[Template, dict[str, str]]] = {
    "pretrain.caption": (templates.read_or_write, {"text": "text"}),
    "pretrain.video": (templates.video_caption, {"text": "answer"}),
    "pretrain.text": (templates.plain_text, {"text": "text"}),
    "sft.vqa": (templates.question, {"question": "question", "answer": "answer"}),
    "sft.t2i": (templates.draw, {"text": "text"}),
    "sft.edit_gpt": (templates.edit, {"instruction": "instruction_gpt", "response": "response"}),
    "sft.edit": (templates.edit, {"instruction": "instruction"}),
    "sft.conversation": (templates.turns, {"question": "question", "answer": "answer"}),
    "sft.difference": (templates.difference, {"question": "question", "answer": "answer"}),
    "sft.story": (templates.story, {}),
    "sft.video": (templates.question, {"question": "question", "answer": "answer"}),
    "sft.visual_question": (templates.turns, {"turns": "data"}),
}


def images(fields: dict[str, Any]) -> tuple[Image, ...]:
    """All pictures of a sample, whose codes are one list, or a list for each."""
    flat: list[int] = []
    for name in ("image_ids", "source_image_ids", "target_image_ids"):
        for item in fields.get(name, []):
            flat += item if isinstance(item, list) else [item]
    assert len(flat) % PER_IMAGE == 0
    return tuple(image(flat[at : at + PER_IMAGE]) for at in range(0, len(flat), PER_IMAGE))


def image(ids: list[int]) -> Image:
    """A picture that is known by its codes."""
    return Image(understood=Codes(torch.tensor(ids), "seed"))


def parts(text: str) -> list[Any]:
    """A golden string's text and images."""
    pieces = [piece for piece in re.split(r"(<img>(?:<img_\d{5}>)*</img>)", text) if piece]
    codes = re.compile(r"<img_(\d{5})>")
    return [image([int(c) for c in codes.findall(p)]) if p.startswith("<img>") else p for p in pieces]
