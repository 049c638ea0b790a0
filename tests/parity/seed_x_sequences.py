"""SEED-X's training sequences: every sample of the golden file as a document, spelt by our grammar, word for word with
what is learned, read and drawn.

Dimension key: W views of one image · N vectors of a view · S slots · C visual width
"""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.golden import Golden
from tests.parity.seed_x_modules import SOURCE, Toy

from rebus.document import Document, Image, Message, assistant, user
from rebus.papers.seed_x.boxes import split_boxes
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.spelling import EDIT, SeedXGrammarConfig
from rebus.papers.seed_x.views import choose_grid, positions
from rebus.sequence import Sequence
from rebus.visual import Features

IGNORED = -100


def check_sequences(golden: Golden) -> None:
    toy, slots = Toy(golden.json["toy_tokenizer"]), golden.json["num_image_tokens"]
    config = toy.grammar(slots)
    for case in golden.json["cases"]:
        check = {"caption": caption, "conversation": chat, "edit": edit, "gen_prompt_compose": wish}[case["fn"]]
        check(case, SeedXGrammar(toy, config, SOURCE), toy)


def understood(position_W2: torch.Tensor, config: SeedXGrammarConfig) -> Image:
    """An image to be read, of as many views as there are places."""
    return Image(understood=Features(torch.zeros(len(position_W2), config.vectors, 8), SOURCE, position_W2))


def drawn(config: SeedXGrammarConfig) -> Image:
    """An image to be drawn."""
    return Image(generated=Features(torch.zeros(1, config.slots, 8), SOURCE))


def compare(case: dict[str, Any], sequence: Sequence, length: int) -> None:
    """Words, labels and slots of a sample, which the official code fills up with padding or cuts off at `length`."""
    out, ids, places = case["out"], sequence.ids[:length], range(min(length, len(sequence)))
    missing = length - len(ids)
    got = {
        "input_ids": ids + [0] * missing,
        "attention_mask": [1] * len(ids) + [0] * missing,
        "labels": [sequence.ids[at] if sequence.target[at] else IGNORED for at in places] + [IGNORED] * missing,
    }
    for name, spans in (("ids_cmp_mask", sequence.input_spans), ("ids_gen_mask", sequence.output_spans)):
        inside = {place for start, stop in spans for place in range(start, stop)}
        got[name] = [int(place in inside) for place in range(length)]
    assert got == {name: out[name] for name in got}, case["name"]
    views = out.get("embeds_cmp_mask") or []
    assert len(sequence.input_spans) == sum(views) and len(sequence.outputs) == sum(out.get("embeds_gen_mask") or [])


def caption(case: dict[str, Any], grammar: SeedXGrammar, toy: Toy) -> None:
    """Image and text; which stands first is drawn, but for a text that leaves no room for the image behind it."""
    asked, config = case["args"], grammar.config
    room = asked["max_length"] - (config.slots + 2) * asked["num_images"] - 2
    flips = len(toy.encode(asked["caption"])) > room
    if asked["uniform"] < asked["img_first_ratio"] or flips:
        image = understood(torch.full((asked["num_images"], 2), 0.5), config)
        document = Document((user(image), assistant(asked["caption"])))
    else:
        document = Document((user(asked["caption"]), assistant(drawn(config))))
    compare(case, grammar.serialize(document, template="plain", loss="paper"), asked["max_length"])


def wish(case: dict[str, Any], grammar: SeedXGrammar, toy: Toy) -> None:
    """A wish for an image, spelt from its two phrases."""
    said, _, answer = case["out"]["text"].partition(" [/INST]\n")
    document = Document((user(said.removeprefix("[INST] ")), assistant(answer)))
    assert said.endswith(case["args"]["caption"]) and answer
    assert grammar.serialize(document).ids == toy.spell(f"<s>{case['out']['text']}</s>")


def chat(case: dict[str, Any], grammar: SeedXGrammar, toy: Toy) -> None:
    """Questions and answers, about an image or not, with boxes in the answers."""
    asked, config, image = case["args"], grammar.config, None
    if asked["image_size"] is not None:
        choices = [(int(columns), int(rows)) for columns, _, rows in (name.partition("x") for name in asked["grids"])]
        position_W2 = positions(choose_grid(tuple(asked["image_size"]), choices, asked["base_resolution"]))
        torch.testing.assert_close(position_W2, torch.tensor(case["out"]["patch_position"]), atol=1e-6, rtol=0)
        assert case["out"]["images_patch_length"] == [len(position_W2)]
        image = understood(position_W2, config)
    messages: list[Message] = []
    for number, text in enumerate(asked["data"]):
        if number % 2:
            messages.append(assistant(*split_boxes(text, config.locations)))
        else:
            messages.append(user(*around(text, image if number == 0 else None, asked["uniform"])))
    sequence = grammar.serialize(Document(tuple(messages)), loss="paper")
    compare(case, sequence, asked["max_length"])
    assert sequence.ids == toy.spell(f"<s>{case['out']['text']}</s>")


def edit(case: dict[str, Any], grammar: SeedXGrammar, toy: Toy) -> None:
    """An image and an instruction, answered by a sentence and an image."""
    if not case["out"]:  # the official code fails on it
        assert not case["args"]["multi_resolution"]
        return
    asked = case["args"]
    config = grammar.config
    grammar = SeedXGrammar(toy, SeedXGrammarConfig(**{**vars(config), "chat": EDIT}), SOURCE)
    _, _, answer = case["out"]["text"].partition(" [/INST]\n")
    image = understood(torch.tensor(case["out"]["patch_position"][: case["out"]["images_patch_length"][0]]), config)
    said = user(*around(asked["instruction"], image, asked["uniform"]))
    reply = [sentence] if (sentence := answer.partition("<img>")[0]) else []
    sequence = grammar.serialize(Document((said, assistant(*reply, drawn(config)))), loss="paper")
    compare(case, sequence, asked["max_length"])
    assert sequence.ids == toy.spell(f"<s>{case['out']['text']}</s>")


def around(text: str, image: Image | None, draw: float) -> list[str | Image]:
    """Text with its image before or after it, as the draw says."""
    return [text] if image is None else [image, text] if draw < 0.5 else [text, image]
