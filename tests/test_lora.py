"""The LoRA layer that learns in one step says and learns what PEFT's does."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from rebus.nn.lora import LoraLinear


def _layer(kind: type[lora.Linear], *, bias: bool = False, dropout: float = 0.0) -> lora.Linear:
    """A layer of 12 → 20 with rank 3, whose numbers are the same for every kind."""
    generator = torch.Generator().manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout)
    layer = kind(nn.Linear(12, 20, bias=bias), "default", config=config, r=3, lora_alpha=6)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    layer.get_base_layer().requires_grad_(False)
    return layer


def _learn(layer: lora.Linear, x: Tensor, autocast: bool) -> list[Tensor]:
    """What it says, and the gradients of input, A and B."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    learned = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    return [y.detach(), *torch.autograd.grad((y.float() * torch.linspace(-1, 1, y.shape[-1])).square().sum(), learned)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_says_and_learns_what_peft_does(bias: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    wanted = _learn(_layer(lora.Linear, bias=bias), x, autocast)
    monkeypatch.setattr(lora.Linear, "forward", None)
    found = _learn(_layer(LoraLinear, bias=bias), x, autocast)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if autocast:  # both round to bfloat16, at other places
            assert (ours - theirs).norm() < 0.01 * theirs.norm()
        else:
            torch.testing.assert_close(ours, theirs)


def test_rounding_is_no_coarser_than_pefts() -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
    exact = _learn(_layer(lora.Linear), x, autocast=False)
    for which, (ours, theirs, true) in enumerate(
        zip(_learn(_layer(LoraLinear), x, True), _learn(_layer(lora.Linear), x, True), exact, strict=True)
    ):
        assert (ours - true).norm() < 1.1 * (theirs - true).norm(), which


@pytest.mark.parametrize("case", ["no gradient", "merged", "disabled", "dropout", "two at once", "base learns"])
def test_all_else_is_pefts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [_layer(kind, dropout=0.5 if case == "dropout" else 0.0) for kind in (lora.Linear, LoraLinear)]
    for layer in layers:
        if case == "merged":
            layer.merge()
        if case == "disabled":
            layer.enable_adapters(False)
        if case == "two at once":
            layer.update_layer("other", 2, lora_alpha=2, config=LoraConfig(r=2))
            layer.set_adapter(["default", "other"])
        if case == "base learns":
            layer.get_base_layer().requires_grad_(True)
    monkeypatch.setattr("rebus.nn.lora.LoraProduct", None)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    said = []
    for layer in layers:
        torch.manual_seed(6)
        with torch.set_grad_enabled(case != "no gradient"):
            said.append(layer(x))
    torch.testing.assert_close(*said)
