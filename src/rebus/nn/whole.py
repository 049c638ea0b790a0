"""A language model written as one: adapters folded in, new words behind the old ones in its own table.

`TextModel.merge` does this in place, for export; here the model stays as it is and only its tensors are put together.

Dimension key: V vocabulary · D width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rebus.errors import RebusError
from rebus.nn.text_model import TextModel

UNUSED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")
"""What a `config.json` says that is no property of the model."""


def whole_config(model: TextModel) -> dict[str, Any]:
    """The `config.json` of the model with all its words, as `build_causal_lm` takes it."""
    about = {key: value for key, value in model.base.config.to_diff_dict().items() if key not in UNUSED}
    tied = model.base.config.tie_word_embeddings and (model.rows is None or model.rows.input is model.rows.output)
    kind = model.base.config.model_type
    return about | {"model_type": kind, "vocab_size": model.vocabulary, "tie_word_embeddings": bool(tied)}


@torch.no_grad()
def whole_tensors(model: TextModel) -> dict[str, Tensor]:
    """The tensors of the model with all its words, under the names that a TextModel without new rows has.

    Rows are written in the number format of the table, which is what they are read in. Raises RebusError for a model with
    adapters that are not folded, or with weights in int8.
    """
    tensors = model.state_dict()
    if any(".lora_" in name for name in tensors):
        raise RebusError(
            "The language model still has adapters beside its weights, so it cannot be written as one. Call `fold_lora` "
            "on it first; `load` does."
        )
    if not all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors.values()):
        raise RebusError(
            "The language model's weights are held in int8, which is not how they are stored. Load it again without "
            "`dtype=torch.int8` and save that."
        )
    if model.rows is None:
        return tensors
    table, head = model.base.get_input_embeddings(), model.base.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return {name: x for name, x in tensors.items() if not name.startswith("rows.")} | {
        names[id(table)]: torch.cat([table.weight, model.rows.input.table().to(table.weight.dtype)]),
        names[id(head)]: torch.cat([head.weight, model.rows.output.table().to(head.weight.dtype)]),
    }
