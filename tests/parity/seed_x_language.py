"""SEED-X's language side against numbers of the official code: losses, generation, adapters and new rows.

Dimension key: B rows of a batch · L words · V views of all images · N vectors of a view · S slots · C visual width ·
D width of the language model
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from tests.parity.golden import Golden
from tests.parity.seed_x_modules import SOURCE, Toy, exactly, fill

from rebus.generate import Decoder
from rebus.grammar import Allow, Force
from rebus.lm import InterleavedLM
from rebus.narrate import Finished
from rebus.nn.lora import add_lora
from rebus.nn.new_rows import new_rows
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.papers.seed_x.convert import AGENT_RULES, LANGUAGE_RULES, tuned_rules
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LanguageConfig
from rebus.papers.seed_x.projectors import SeedXInputProjector, SeedXOutputProjector
from rebus.papers.seed_x.vision import pool_rows
from rebus.sampling import Sampling
from rebus.sequence import Batch, Sequence, collate
from rebus.visual import Features

IGNORED = -100
"""What the official labels say of a word that is not learned."""


# ------------------------------------------------------------------------------------------------ the agent


def resampler_config(sizes: dict[str, Any]) -> ResamplerConfig:
    return ResamplerConfig(sizes["grid_size"], sizes["embed_dim"], sizes["num_heads"], sizes["kv_dim"])


def agent(golden: Golden) -> InterleavedLM:
    """The language model and both projectors of a file."""
    sizes = golden.config
    llama = {"model_type": "llama", "tie_word_embeddings": False, **sizes["llm"]}
    into = SeedXInputProjector(resampler_config(sizes["input_resampler"]))
    out_of = SeedXOutputProjector(resampler_config(sizes["output_resampler"]), source=SOURCE)
    weight = sizes["agent"]["rec_loss_scale"] / sizes["agent"]["lm_loss_scale"]
    lm = InterleavedLM(TextModel(build_causal_lm(llama)), into, out_of, weight).eval()
    words = {name.removeprefix("llm."): x for name, x in golden.state.items() if name.startswith("llm.")}
    rest = {name: x for name, x in golden.state.items() if not name.startswith("llm.")}
    fill(lm, words | rest, (*AGENT_RULES, *LANGUAGE_RULES))
    return lm


def check_agent(golden: Golden) -> None:
    lm = agent(golden)
    cases = {name.split(".")[0] for name in golden.part("in")}
    drawn = {name.split(".")[0] for name in golden.part("out") if name.endswith(".sequences")}
    for case in sorted(cases - drawn):
        check_losses(golden, lm, case)
    for case in sorted(drawn):
        check_generation(golden, lm, case)


def check_losses(golden: Golden, lm: InterleavedLM, case: str) -> None:
    check, outputs = exactly(golden, 2e-5), golden.part("out")
    batch = batch_of(golden, case)
    assert isinstance(lm.output_projector, SeedXOutputProjector)
    lm.output_projector.regression = "cosine" if case.startswith("cosine") else "mse"
    mask_BL = golden.input(f"{case}.attention_mask").bool()
    beyond = mask_BL.shape[1] - batch.ids_BL.shape[1]
    x_BLD = lm.embed(batch)
    hidden_BLD = lm.hidden(x_BLD, batch)
    padding_D = lm.llm.embed(torch.zeros(1, 1, dtype=torch.long))[0, 0]
    x_BLD = torch.where(mask_BL[..., None], F.pad(x_BLD, (0, 0, 0, beyond)), padding_D)
    check(f"{case}.input_embeds", x_BLD)
    check(f"{case}.last_hidden_state", F.pad(hidden_BLD, (0, 0, 0, beyond)) * mask_BL[..., None])
    slots = lm.output_projector.resampler.config.queries
    if f"{case}.input_resampler" in outputs:
        # before the places of views are added
        views = [Features(view.x_WNC, SOURCE) for view in batch.inputs if isinstance(view, Features)]
        check(f"{case}.input_resampler", lm.input_projector(views).unflatten(0, (-1, slots)))
    if f"{case}.output_slots_hidden" in outputs:
        said_ISD = hidden_BLD[batch.output_BL].unflatten(0, (-1, slots))
        check(f"{case}.output_slots_hidden", said_ISD)
        check(f"{case}.recon_image_embeds", torch.cat([lm.output_projector(one_SD).x_WNC for one_SD in said_ISD]))
    losses = lm(batch)
    image = torch.zeros(()) if losses.image is None else losses.image
    for name, got in (("lm_loss", losses.text), ("rec_loss", image), ("total_loss", losses.total)):
        golden.check(f"{case}.{name}", got, atol=1e-4, rtol=1e-5)


def batch_of(golden: Golden, case: str) -> Batch:
    """The case as our batch: one sequence a row, without its padding."""
    ids_BL, labels_BL, mask_BL, read_BL, said_BL = (
        golden.input(f"{case}.{name}")
        for name in ("input_ids", "labels", "attention_mask", "ids_cmp_mask", "ids_gen_mask")
    )
    views, targets = views_of(golden, case)
    slots = golden.config["num_img_tokens"]
    sequences = []
    for ids, labels, mask, read, said in zip(ids_BL, labels_BL, mask_BL, read_BL, said_BL, strict=True):
        length = int(mask.sum())
        into, out_of = groups(read.nonzero()[:, 0].tolist(), slots), groups(said.nonzero()[:, 0].tolist(), slots)
        inputs, views = views[: len(into)], views[len(into) :]
        outputs, targets = targets[: len(out_of)], targets[len(out_of) :]
        learned = [label != IGNORED for label in labels[:length].tolist()]
        sequences.append(Sequence(ids[:length].tolist(), learned, into, out_of, [*inputs], outputs))
    assert not views and not targets
    return collate(sequences)


def groups(places: list[int], slots: int) -> list[tuple[int, int]]:
    """Positions of slots → spans of one view each."""
    spans = [(places[at], places[at + slots - 1] + 1) for at in range(0, len(places), slots)]
    assert all(stop - start == slots for start, stop in spans)
    return spans


def views_of(golden: Golden, case: str) -> tuple[list[Features], list[Features]]:
    """Views that are read, with their places where the case adds them, and targets of images that are drawn."""
    if f"in.{case}.image_embeds" not in golden.tensors:
        return [], []
    x_VNC = golden.input(f"{case}.image_embeds")
    placed = f"in.{case}.patch_positions" in golden.tensors
    position_V2 = golden.input(f"{case}.patch_positions") if placed else None
    everything = torch.ones(len(x_VNC), dtype=torch.bool)
    read_V = golden.tensors.get(f"in.{case}.embeds_cmp_mask", everything)
    said_V = golden.tensors.get(f"in.{case}.embeds_gen_mask", ~everything)
    views = [
        Features(x_VNC[v : v + 1], SOURCE, None if position_V2 is None else position_V2[v : v + 1])
        for v in read_V.nonzero()[:, 0].tolist()
    ]
    count = x_VNC.shape[1] // golden.config["num_img_tokens"]
    return views, [Features(pool_rows(x_NC[None], count), SOURCE) for x_NC in x_VNC[said_V]]


# ------------------------------------------------------------------------------------------------ generation


class Begun:
    """A grammar for prompts that end with the mark of an image, which is the first word of the reply here: that word is
    forced, whatever follows is the grammar's own."""

    def __init__(self, grammar: SeedXGrammar) -> None:
        self.grammar = grammar

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grammar, name)

    def next(self, reply: list[int], modality: Any, left: int) -> Allow | Force:
        if not reply:
            return Force((self.grammar.special.begin_image,))
        return self.grammar.next(reply, modality, left)


def check_generation(golden: Golden, lm: InterleavedLM, case: str) -> None:
    with safe_open(golden.path, "pt") as file:
        about = json.loads(file.metadata()["generation"])[case]
        toy = Toy(json.loads(file.metadata()["toy_tokenizer"]))
    spelling = replace(toy.grammar(golden.config["num_img_tokens"]), replies="free")
    grammar: Any = SeedXGrammar(toy, spelling, SOURCE)
    ids = golden.input(f"{case}.input_ids")[0].tolist()
    assert toy.spell("<s>" + about["prompt"]) == ids
    new = about["max_new_tokens"]
    if ids[-1] == spelling.begin_image:
        grammar, ids, new = Begun(grammar), ids[:-1], new + 1
    spans, views = [], []
    if f"in.{case}.ids_cmp_mask" in golden.tensors:
        spans = groups(golden.input(f"{case}.ids_cmp_mask")[0].nonzero()[:, 0].tolist(), spelling.slots)
        views, _ = views_of(golden, case)
    prompt = Sequence(ids, [False] * len(ids), spans, [], [*views])
    decoder = Decoder(lm, grammar, rows=1, capacity=len(ids) + new)
    reply = decoder.add(prompt, modality="any", sampling=Sampling(max_new_tokens=new))
    drawn = []
    while not decoder.idle:
        for _, event in decoder.step():
            if not isinstance(event, str | Finished) and event.hidden_ND is not None:
                assert lm.output_projector is not None
                drawn.append(lm.output_projector(event.hidden_ND).x_WNC)
    whole = [*ids, *reply.ids]
    golden.check(f"{case}.sequences", torch.tensor([whole]))
    assert len(drawn) == about["num_gen_imgs"]
    if drawn:
        golden.check(f"{case}.img_gen_feat", torch.cat(drawn), atol=2e-5, rtol=0)
    # the states of all words, in one pass over what was said
    batch = collate([Sequence(whole[:-1], [False] * len(whole[:-1]), spans, [], [*views])])
    golden.check(f"{case}.hidden_all", lm.hidden(lm.embed(batch), batch), atol=2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ adapters, new rows


def check_lora(golden: Golden) -> None:
    check, sizes = exactly(golden, 2e-5), golden.config
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
    )
    llama = {"model_type": "llama", "tie_word_embeddings": False, **{name: sizes[name] for name in names}}
    lm = InterleavedLM(TextModel(build_causal_lm(llama)))
    add_lora(lm.llm, rank=sizes["lora_r"], alpha=sizes["lora_alpha"])
    fill(lm, golden.state, tuned_rules())
    lm.eval()
    ids_BL = golden.input("input_ids")
    batch = collate([Sequence(ids, [True] * len(ids)) for ids in ids_BL.tolist()])

    def compare() -> None:
        hidden_BLD = lm.hidden(lm.embed(batch), batch)
        check("last_hidden_state", hidden_BLD)
        check("logits", lm.llm.logits(hidden_BLD))

    compare()
    lm.llm.fold_lora()
    compare()

    init = LanguageConfig(base={})
    old = [golden.input(f"resize.{name}") for name in ("embed_tokens", "lm_head")]
    count = sizes["vocab_size"] - sizes["old_vocab"]
    rows = new_rows(*old, count, input_init=init.rows, output_init=init.output_rows)
    check("resize.embed_tokens", torch.cat([old[0], rows.input.table()]))
    check("resize.lm_head", torch.cat([old[1], rows.output.table()]))
