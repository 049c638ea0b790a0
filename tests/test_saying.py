"""Saying what a picture shows, and the layers of a language model taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rebus.checkpoint import SavedSystem, save_system
from rebus.errors import RebusError
from rebus.mini.named_stage import lend_adapters
from rebus.mini.saying import Saying, lower, of_like_length, vector_states
from rebus.nn.lora import add_lora
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer

LLAMA = {
    "model_type": "llama",
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
NAMES = ["bear", "red apple", "sailboat"]


def text_model() -> TextModel:
    return TextModel(build_causal_lm(LLAMA, generator=torch.Generator().manual_seed(0))).eval()


def read_states(part: TextModel, words: Tensor) -> Tensor:
    return vector_states(part, part.embed(words), torch.arange(words.shape[1]))


def test_the_lower_layers_are_the_models_own() -> None:
    llm = text_model()
    words = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))
    whole = llm.base.base_model(words, output_hidden_states=True)
    for depth in (1, 2):
        torch.testing.assert_close(read_states(lower(llm, depth), words), whole.hidden_states[depth])
    # what was cut off is still there
    torch.testing.assert_close(llm.base.base_model(words).last_hidden_state, whole.last_hidden_state)
    part = lower(llm, 1)
    read_states(part, words).sum().backward()
    assert llm.base.base_model.layers[0].mlp.up_proj.weight.grad is not None
    assert llm.base.base_model.layers[1].mlp.up_proj.weight.grad is None


def test_of_a_reply_the_name_alone_is_learned() -> None:
    llm, text = text_model(), ByteTokenizer()
    saying = Saying(text, NAMES)
    seen = torch.randint(0, 256, (3, 5), generator=torch.Generator().manual_seed(2))
    places = torch.tensor([0, 1, 7, 8, 9])  # some of an image's places are left out
    which = torch.tensor([1, 0, 1])
    losses = saying(llm, list(llm.embed(seen)), which, places)
    nats, right = [], []
    for row, k in zip(seen, which.tolist(), strict=True):
        name = text.encode(f" {NAMES[k]}") + text.encode(".")
        words = torch.tensor([[*row, *saying.asked_L, *name]])
        where = torch.cat([places, 10 + torch.arange(words.shape[1] - 5)])
        logits = llm.base(words, position_ids=where[None], attention_mask=None).logits[0, -len(name) - 1 : -1]
        nats.append(torch.nn.functional.cross_entropy(logits, torch.tensor(name), reduction="none"))
        right.append(bool((logits.argmax(-1) == torch.tensor(name)).all()))
    torch.testing.assert_close(losses.total, torch.cat(nats).mean(), atol=1e-5, rtol=1e-5)
    assert losses.parts["said"] == sum(right) / 3
    # images of different numbers of vectors, side by side as each alone
    images = [*llm.embed(seen), llm.embed(seen[:1])[0, :2]]
    several = saying(llm, images, torch.tensor([1, 0, 1, 2]))
    alone = [saying(llm, [image], torch.tensor([k])) for image, k in zip(images, (1, 0, 1, 2), strict=True)]
    lengths = torch.tensor([len(saying.names[k]) for k in (1, 0, 1, 2)])
    mean = (torch.stack([one.total for one in alone]) * lengths).sum() / lengths.sum()
    torch.testing.assert_close(several.total, mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "llm."])
def test_adapters_begin_as_those_of_another_system(prefix: str, tmp_path: Path) -> None:
    lender, borrower, larger, smaller = (text_model() for _ in range(4))
    for seed, (llm, rank) in enumerate([(lender, 2), (borrower, 2), (larger, 3), (smaller, 1)]):
        add_lora(llm, rank=rank, alpha=2 * rank, generator=torch.Generator().manual_seed(seed))
    adapters = {name: torch.randn_like(x) for name, x in lender.state_dict().items() if ".lora_" in name}
    parts = {
        "lm": {prefix + name: x for name, x in adapters.items()} | {f"{prefix}rows.input.weight_VD": torch.ones(2, 32)}
    }
    save_system(
        tmp_path / "lender", SavedSystem(name="seed:mini", config={}, source="a test"), parts, dtype=torch.float32
    )
    before = {name: x.clone() for name, x in borrower.state_dict().items()}
    lend_adapters(borrower, str(tmp_path / "lender"))
    for name, x in borrower.state_dict().items():
        assert torch.equal(x, adapters.get(name, before[name]))
    # to a larger rank they are the same adapters
    lend_adapters(larger, str(tmp_path / "lender"))
    words = torch.randint(0, 256, (1, 6), generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(larger.eval().base(words).logits, borrower.eval().base(words).logits)
    for llm in (smaller, text_model()):
        with pytest.raises(RebusError, match=r"do not fit this language model.*the same base model and no higher rank"):
            lend_adapters(llm, str(tmp_path / "lender"))
    with pytest.raises(RebusError, match="embedded weights 'nobody' are not at"):
        lend_adapters(borrower, "nobody")


def test_rows_of_like_length_are_together() -> None:
    groups = of_like_length([5, 1, 4, 1, 3], size=2)
    assert groups == [[1, 3], [4, 2], [0]]
