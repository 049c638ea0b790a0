"""LoRA, as PEFT has it, with one step where its layer takes six while it learns.

PEFT casts what comes in to the adapter's number format, under autocast back again, and scales and adds each adapter's whole
output; backward does all of it once more. On a CPU that was about a tenth of a training step. Here what comes in is cast
once, scale and sum are part of the product, and the gradients of input and adapter follow from what is kept: x and A x.
Names, weights, saving and merging stay PEFT's, and so does every case that is not plain training of one adapter.

Dimension key: T tokens · I width in · O width out · R rank
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rebus.errors import RebusError
from rebus.nn.randomness import global_random

if TYPE_CHECKING:
    from rebus.nn.text_model import TextModel

LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraProduct(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ with gradients for x, A and B; all products in one number format."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """x […, I] of any format → […, O] in `dtype`."""
        x_TI = x.reshape(-1, x.shape[-1]).to(dtype)
        weight_OI, down_RI, up_OR = (w.to(dtype) for w in (weight_OI, down_RI, up_OR))
        found_TR = x_TI @ down_RI.T
        y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O.to(dtype), x_TI, weight_OI.T)
        y_TO.addmm_(found_TR, up_OR.T, alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, down_RI, up_OR, found_TR)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradient […, O] → of x […, I], A and B."""
        x_TI, weight_OI, down_RI, up_OR, found_TR = ctx.saved_tensors
        g_TO = grads[0].reshape(-1, weight_OI.shape[0]).to(x_TI.dtype)
        g_TR = (g_TO @ up_OR).mul_(ctx.scale)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = (g_TO @ weight_OI).addmm_(g_TR, down_RI).view(ctx.shape).to(ctx.dtype)
        g_down_RI, g_up_OR = (g_TR.T @ x_TI).float(), (g_TO.T @ found_TR).float().mul_(ctx.scale)
        return g_x, None, None, g_down_RI, g_up_OR, None, None


class LoraLinear(lora.Linear):
    """A linear layer with adapters, as PEFT has it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[…, I] → […, O]."""
        adapter = None if args or kwargs else self._learning(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base, (down, up) = self.get_base_layer(), (held[adapter] for held in (self.lora_A, self.lora_B))
        return LoraProduct.apply(x, base.weight, base.bias, down.weight, up.weight, self.scaling[adapter], _products(x))

    def _learning(self, x: Tensor) -> str | None:
        """The adapter that is being trained, where it is the only one and nothing but it is, without dropout."""
        base, active = self.get_base_layer(), self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or not torch.is_grad_enabled():
            return None
        (adapter,) = active
        if adapter not in self.lora_A or adapter in self.lora_variant:
            return None
        down, up, dropout = self.lora_A[adapter], self.lora_B[adapter], self.lora_dropout[adapter]
        plain = type(base) is nn.Linear and type(base.weight) is nn.Parameter and not base.weight.requires_grad
        learned = down.weight.requires_grad and up.weight.requires_grad and down.weight.dtype == torch.float32
        still = isinstance(dropout, nn.Identity) or not dropout.training or not dropout.p
        if not (plain and learned and still and down.bias is None and up.bias is None):
            return None
        cast = torch.is_autocast_enabled(x.device.type)
        return adapter if cast or x.dtype == base.weight.dtype == torch.float32 else None


def _products(x: Tensor) -> torch.dtype:
    """The number format that products are taken in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def add_lora(
    model: TextModel,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.05,
    targets: Sequence[str] = LLAMA_PROJECTIONS,
    adapter: str = "default",
    generator: torch.Generator | None = None,
) -> None:
    """Put LoRA beside the named projections of the base model, in place and in float32; the base's own weights freeze.
    A second one stays silent until `use_adapter`.

    Raises RebusError when `targets` names no projection of this model. Source: the LoRA settings of SEED-LLaMA.
    """
    spoke = [m.active_adapters for m in model.base.modules() if isinstance(m, BaseTunerLayer)]
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), lora_dropout=dropout, target_modules=list(targets))
    config._register_custom_module({nn.Linear: LoraLinear})
    try:
        with global_random(generator), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(config, model.base, adapter)
    except ValueError as error:
        kinds = sorted({name.rpartition(".")[2] for name, m in model.base.named_modules() if isinstance(m, nn.Linear)})
        raise RebusError(
            f"LoRA was asked for {', '.join(targets)}, but this language model's projections are {', '.join(kinds)}. "
            "Name some of these as targets."
        ) from error
    for name, parameter in model.base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    if spoke:
        use_adapter(model, spoke[0][0])


def use_adapter(model: TextModel, adapter: str) -> None:
    """Make `adapter` the one LoRA that is active."""
    for module in model.base.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(adapter)


def lora_state(model: TextModel, adapter: str = "default") -> dict[str, Tensor]:
    """The tensors of one LoRA under PEFT's names, for export; inside this library its parameters' own names serve."""
    return get_peft_model_state_dict(model.base, adapter_name=adapter)


def fold_lora(base: nn.Module) -> None:
    """Write the active LoRA of a model into its weights, in place, and take the adapters out."""
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())
