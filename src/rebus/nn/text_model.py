"""A causal language model of Hugging Face with new vocabulary rows, LoRA and int8 weights.

The transformer itself, its kernels and its quantisation stay theirs. New words are rows of their own, looked up beside
the old table and never copied into it while training; `merge` writes them, and LoRA, into the model for export.

Dimension key: B batch · L length · T tokens of a batch · D width · V vocabulary
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rebus.errors import RebusError
from rebus.nn.lora import fold_lora
from rebus.nn.new_rows import NewRows, RowInit, new_rows
from rebus.nn.randomness import global_random
from rebus.nn.row_cache import RowCache
from rebus.nn.running_sums import SummedWords
from rebus.nn.text_attention import NAME

if TYPE_CHECKING:  # which looks words up in this model
    from rebus.nn.written_codes import WrittenCodes


class TextModel(nn.Module):
    """A causal language model seen as three maps: ids → vectors → hidden states → logits.

    `base` is any Hugging Face causal language model that takes explicit position ids and a 4-D mask (LLaMA, SmolLM2,
    Qwen, OPT …). `rows` are the new words, whose ids follow the old ones.
    """

    def __init__(self, base: PreTrainedModel, rows: NewRows | None = None) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.words: int = base.get_input_embeddings().num_embeddings
        self.summed: SummedWords | None = None
        """words that are read as the sum of those that stand side by side with them so far; none: all are read alone"""
        self.codes: WrittenCodes | None = None

    def tell_codes(self, codes: WrittenCodes) -> TextModel:
        """Give the model what it knows of codes beyond their rows. Returns self."""
        self.codes = codes
        codes.look_up_in(self)
        return self

    def extend(
        self,
        count: int,
        *,
        input_init: RowInit | None = None,
        output_init: RowInit | None = None,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> TextModel:
        """Give the model `count` new words in float32; `tied` lets one parameter serve input and output. Returns self."""
        old_output_VD = self.base.get_output_embeddings().weight
        self.rows = new_rows(
            self._table.weight,
            old_output_VD,
            count,
            input_init=input_init,
            output_init=output_init,
            tied=tied,
            generator=generator,
        )
        return self

    @property
    def _table(self) -> nn.Embedding:
        return self.base.get_input_embeddings()

    @property
    def vocabulary(self) -> int:
        """Number of words, old and new."""
        return self.words + (0 if self.rows is None else len(self.rows.output.table()))

    @property
    def width(self) -> int:
        """Width D of the vectors that go in."""
        return self._table.embedding_dim

    @property
    def max_length(self) -> int:
        """Most words that the model was built to read at once."""
        return self.base.config.max_position_embeddings

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the word table, and so of the vectors that go in."""
        return self._table.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the word table lies."""
        return self._table.weight.device

    def embed(self, ids_BL: Tensor) -> Tensor:
        """ids_BL → x_BLD: old words from the frozen table, new ones from their own rows. Of words that are summed, all
        that come before them in their image must be there."""
        if self.rows is None:
            x_BLD = self._table(ids_BL)
            x_BLD = x_BLD if self.summed is None else self.summed.sums(x_BLD, ids_BL)
            return x_BLD if self.codes is None else self.codes.read(x_BLD, ids_BL)
        old_BLD = self._table(ids_BL.clamp(max=self.words - 1))
        new_BLD = self.rows.input((ids_BL - self.words).clamp(min=0))
        if self.summed is not None:
            new_BLD = self.summed.sums(new_BLD, ids_BL)
        if self.codes is not None:
            new_BLD = self.codes.read(new_BLD, ids_BL)
        return torch.where((ids_BL >= self.words)[..., None], new_BLD.to(old_BLD.dtype), old_BLD)

    def embed_after(self, before: Sequence[int], ids: Sequence[int]) -> Tensor:
        """x_LD of words that follow those of `before`."""
        begun = [] if self.summed is None else self.summed.open_end(before)
        ids_1L = torch.tensor([[*begun, *ids]], device=self.device)
        return self.embed(ids_1L)[0, len(begun) :]

    def hidden(
        self, x_BLD: Tensor, positions_BL: Tensor, attend_B1LL: Tensor | None = None, cache: RowCache | None = None
    ) -> Tensor:
        """x_BLD → hidden_BLD, after the final norm.

        `attend_B1LL` is True where a query (third axis) may see a key (fourth; with a cache, the keys that it returns);
        None means plain causal attention over the given vectors. Positions are those within a document.
        """
        mask = None if attend_B1LL is None else self._additive(attend_B1LL, x_BLD)
        return self.base.base_model(
            inputs_embeds=x_BLD,
            attention_mask=mask,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    @staticmethod
    def _additive(attend_B1LL: Tensor, x_BLD: Tensor) -> Tensor:
        # additive and in the model's dtype, the one form that both the eager and the SDPA attention understand
        dtype = torch.get_autocast_dtype(x_BLD.device.type) if torch.is_autocast_enabled(x_BLD.device.type) else None
        dtype = dtype or x_BLD.dtype
        return torch.zeros((), dtype=dtype, device=x_BLD.device).masked_fill(~attend_B1LL, torch.finfo(dtype).min)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """hidden_TD → logits_TV over old and new words."""
        old_TV = self.base.get_output_embeddings()(hidden_TD)
        if self.rows is None:
            return old_TV
        return torch.cat([old_TV, self.new_logits(hidden_TD).to(old_TV.dtype)], -1)

    def new_logits(self, hidden_TD: Tensor) -> Tensor:
        """hidden_TD → logits over the new words alone. Raises ValueError for a model without such."""
        if self.rows is None:
            raise ValueError("This model has no rows for new words; it was merged, or never had any.")
        return F.linear(hidden_TD, self.rows.output.table().to(hidden_TD.dtype))

    def row_cache(self, rows: int, capacity: int) -> RowCache:
        """An empty cache for `rows` sequences of at most `capacity` tokens each."""
        return RowCache(rows, capacity)

    def fold_lora(self) -> None:
        """Write the active LoRA into the base's weights, in place, and take the adapters out: decoding without them
        costs a third less. Not for weights held in int8, nor for a model that goes on learning."""
        fold_lora(self.base)

    def merge(self) -> PreTrainedModel:
        """Write LoRA and new rows into the base model, in place, and return it: what the published layouts hold.

        Afterwards `rows` is None and the vocabulary is part of the base. Rows that differ for input and output untie
        the head of a tied model.
        """
        self.fold_lora()
        if self.rows is None:
            return self.base
        tied = self.rows.input is self.rows.output and _is_tied(self.base)
        with torch.no_grad():
            input_VD = torch.cat([self._table.weight, self.rows.input.table().to(self.dtype)])
            head = self.base.get_output_embeddings()
            output_VD = torch.cat([head.weight, self.rows.output.table().to(head.weight.dtype)])
        table = nn.Embedding.from_pretrained(input_VD, freeze=False)
        new_head = nn.Linear(self.width, len(output_VD), bias=False, device="meta")
        new_head.weight = table.weight if tied else nn.Parameter(output_VD)
        self.base.set_input_embeddings(table)
        self.base.set_output_embeddings(new_head)
        self.base.config.tie_word_embeddings = tied
        self.base.config.vocab_size = self.words = len(output_VD)
        self.rows = None
        return self.base


def _is_tied(base: PreTrainedModel) -> bool:
    return base.get_input_embeddings().weight is base.get_output_embeddings().weight


# ---------------------------------------------------------------------------------------------- building


def read_causal_lm(folder: Path | str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model of a local Hugging Face folder, or of a hub id that is already in the local cache.

    Raises RebusError when there is none, or when tensors are missing, left over or of another shape.
    """
    try:
        with _no_progress_bar():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                attn_implementation=NAME,
                output_loading_info=True,
                local_files_only=True,
            )
    except (OSError, ValueError) as error:
        raise RebusError(
            f"{folder} holds no language model that can be read: {str(error).splitlines()[0]}. "
            "Name a folder with config.json and model.safetensors."
        ) from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names and kind.endswith("_keys")}
    if wrong:
        listed = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:8])}" for kind, names in wrong.items())
        raise RebusError(f"The language model in {folder} does not fit its config.json ({listed}). Fetch it again.")
    return model


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing its own bar, which reading takes a second for; its setting is put back."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def build_causal_lm(
    config: PretrainedConfig | dict[str, Any],
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PreTrainedModel:
    """A causal language model with random weights from its config (a dict needs `model_type`)."""
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    with global_random(generator):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    return model.to(dtype) if dtype else model.float()


def own_names(model: TextModel) -> list[str]:
    """Names of the parameters that are not the base model's: LoRA, new rows, and what it knows of codes."""
    return [name for name in model.state_dict() if name.startswith(("rows.", "codes.")) or ".lora_" in name]


def quantize_int8(model: TextModel, *, skip: Iterable[str] = ("lm_head",)) -> None:
    """Hold the base's linear weights as int8, in place, for inference on little memory (torchao, weight only).

    LoRA and new rows stay as they are. Raises RebusError when torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise RebusError(
            "An int8 language model needs torchao, which is not installed. Run `pip install 'rebus-lm[int8]'`."
        ) from error
    left = tuple(skip)

    def wanted(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.endswith(left) and ".lora_" not in name

    quantize_(model.base, Int8WeightOnlyConfig(), filter_fn=wanted)
