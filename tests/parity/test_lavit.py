"""LaVIT against numbers of the official modules: every golden file is a case of its own.

Dimension key: I images · N patches · T kept patches of all images · L words · C width · E code width · D width of the LM
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from tests.parity.golden import Golden, kind_of
from tests.parity.lavit_language import FIRST, check_guidance, check_llm_inputs, spelled
from tests.parity.lavit_modules import SOURCE, detokenizer, fill, merger_config, prefixed, tokenizer
from torch import Tensor, nn

from rebus.document import Image
from rebus.images import CLIP_MEAN, CLIP_STD, prepare
from rebus.nn.attention import attend
from rebus.nn.quantize import distances
from rebus.papers.lavit.convert import ENCODER_RULES, PROJECTOR_RULES, vision_rules
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.questions import clean_question
from rebus.papers.lavit.selector import KEEP, keep_likely, keep_sampled
from rebus.papers.lavit.spelling import LavitGrammarConfig
from rebus.visual import Patches

NAMES = r"lavit_"


def features_beside(golden: Golden) -> Tensor | None:
    """The features that a decoder's file compares with, which lie in the tokenizer's file of the same folder, if any."""
    path = golden.path.with_name(re.sub("decoder_(low|high)res", "tokenizer", golden.path.name))
    return Golden(path).tensors["out.patch_features"] if path.exists() else None


# ------------------------------------------------------------------------------------------------ the tokenizer


def check_vision_encoder(golden: Golden) -> None:
    model = tokenizer(golden)
    fill(model, golden.state, vision_rules(""), "visual_encoder")
    vit, pixels = model.visual_encoder, golden.input("image")
    golden.check("patch_embed", rearrange(vit.patch_embed(pixels), "i c h w -> i (h w) c"))
    x_INC = vit.embed(pixels)
    golden.check("block0.attn", vit.blocks[0].attn(vit.blocks[0].norm1(x_INC)))
    for number, block in enumerate(vit.blocks):
        if number == 0:
            after_INC = x_INC + block.attn(block.norm1(x_INC))
            golden.check("block0.mlp", block.mlp(block.norm2(after_INC)), atol=2e-5)
        x_INC = block(x_INC)
        golden.check(f"block{number}", x_INC, atol=2e-5)
    golden.check("all_features", vit(pixels), atol=2e-5)
    golden.check("patch_features", model.features(pixels), atol=2e-5)
    # what LaVIT does not use, by the file's own weights
    norm, head = golden.part("state.norm"), golden.part("state.head")
    normed_IC = F.layer_norm(x_INC[:, 0], x_INC.shape[-1:], norm["weight"], norm["bias"], eps=1e-6)
    golden.check("clip_embedding", F.linear(normed_IC, head["weight"], head["bias"]), atol=2e-5)


def check_selector(golden: Golden) -> None:
    model = tokenizer(golden)
    fill(model, prefixed("token_predictor", golden.state), ENCODER_RULES, "selector")
    selector, x_INC = model.selector, golden.input("features")
    golden.check("in_conv", selector.mix(x_INC))
    mixed_INC = selector.local_and_global(x_INC, golden.input("policy_all_ones")[..., 0])
    golden.check("local_global", mixed_INC)
    assert torch.equal(mixed_INC, selector.local_and_global(x_INC))
    golden.check("logits", selector.score(mixed_INC))
    logp_IN2 = selector(x_INC)
    golden.check("log_probs", logp_IN2)
    golden.check("keep_prob", logp_IN2[..., KEEP].exp())
    golden.check("log_probs_partial_policy", selector(x_INC, golden.input("policy_partial")[..., 0]))
    for name, keep_IN in (
        ("sampled", keep_sampled(logp_IN2, golden.input("gumbel_noise"))),
        ("argmax", keep_likely(logp_IN2)),
    ):
        golden.check(f"keep_{name}", keep_IN.long())
        golden.check(f"num_{name}", keep_IN.sum(1))


def check_merger(golden: Golden) -> None:
    model = LavitInputProjector(merger_config(golden), 1)
    fill(model, prefixed("causal_encoder", golden.state), PROJECTOR_RULES, "merger")
    merger, x_INC = model.merger.eval(), golden.input("features")
    for edge in ("edge.", "") if "in.edge.keep" in golden.tensors else ("",):
        keep_IN = golden.input(f"{edge}keep")
        check_merger_blocks(golden, merger, x_INC, keep_IN, edge)
        kept_IN = keep_IN.bool()
        golden.check(f"{edge}lengths", kept_IN.sum(1))
        golden.check(f"{edge}merged_all", merger(x_INC, keep_IN))
        golden.check(f"{edge}merged_kept_packed", merger.kept(x_INC, kept_IN))
        if "sharp" not in golden.stem:  # kept rows alone, with clean masks, say the same
            golden.check(f"{edge}merged_kept_packed", merger.packed(x_INC, kept_IN), atol=1e-4)
    if "score_gap_causal" in golden.part("out"):
        check_gap(golden, merger, x_INC, keep_IN)


def check_merger_blocks(golden: Golden, merger: nn.Module, x_INC: Tensor, keep_IN: Tensor, edge: str) -> None:
    atol = 5e-5 if "sharp" in golden.stem else 1e-5
    source_INC = merger.source_norm(x_INC)
    golden.check(f"{edge}ln_vision", source_INC)
    own_NN = torch.eye(x_INC.shape[1])
    allow_INN = (keep_IN[:, None] * (1 - own_NN) + own_NN).tril()
    for number, block in enumerate(merger.blocks):
        if number == 0:
            causal_INC = block.among_kept(block.norm0(x_INC), allow_INN)
            golden.check(f"{edge}block0.causal_attn", causal_INC, atol=atol)
            cross_INC = block.to_dropped(block.norm1(x_INC + causal_INC), source_INC, 1 - keep_IN)
            golden.check(f"{edge}block0.cross_attn", cross_INC, atol=atol)
            golden.check(f"{edge}block0.mlp", block.mlp(block.norm2(x_INC + causal_INC + cross_INC)), atol=atol)
        x_INC = block(x_INC, source_INC, keep_IN)
        golden.check(f"{edge}block{number}", x_INC, atol=atol)


def check_gap(golden: Golden, merger: nn.Module, x_INC: Tensor, keep_IN: Tensor) -> None:
    """The file is what it says, and a clean mask does not pass it."""
    block, own_NN = merger.blocks[0], torch.eye(x_INC.shape[1])
    q, k, _ = block.causal.qkv(block.norm0(x_INC)).chunk(3, -1)
    q, k = (rearrange(x, "i n (h e) -> i h n e", h=block.causal.heads) for x in (q, k))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    allowed_I1NN = (keep_IN[:, None] * (1 - own_NN) + own_NN).tril()[:, None] > 0
    best = scores.masked_fill(~allowed_I1NN, float("-inf")).amax(-1)
    golden.check("score_gap_causal", scores.amax(-1) - best, atol=1e-4)
    clean_TC = merger.packed(x_INC, keep_IN.bool())
    assert (clean_TC - golden.out("merged_kept_packed")).abs().max() > 0.5


def check_quantizer(golden: Golden) -> None:
    model = tokenizer(golden)
    fill(model, golden.state, ENCODER_RULES, "to_code", "quantizer")
    x_TC, codebook_KE = golden.input("merged_kept_packed"), model.quantizer.codebook_KC
    golden.check("pre_quant", model.to_code(x_TC))
    z_TE = model.codes_before(x_TC)
    golden.check("pre_quant_l2", z_TE)
    far_TK = distances(z_TE, codebook_KE)
    golden.check("distances", far_TK)
    two_T2 = far_TK.topk(2, largest=False).values
    golden.check("margin", two_T2[:, 1] - two_T2[:, 0])
    ids_T = model.quantizer.encode(z_TE)
    golden.check("ids", ids_T)
    golden.check("z_q", model.quantizer.decode(ids_T))
    if "ids_if_cosine" in golden.part("out"):
        cosine_T = distances(z_TE, F.normalize(codebook_KE, dim=-1)).argmin(-1)
        golden.check("ids_if_cosine", cosine_T)
        assert (cosine_T != ids_T).any()


def check_tokenizer(golden: Golden) -> None:
    model = tokenizer(golden)
    unused = {name: x for name, x in golden.state.items() if not name.startswith("vit_proj.")}
    fill(model, unused, ENCODER_RULES + vision_rules("encoder."))
    way_in = LavitInputProjector(merger_config(golden), golden.config["llm_dim"]).eval()
    wanted = ("causal_encoder.", "vit_proj.")
    fill(way_in, {name: x for name, x in golden.state.items() if name.startswith(wanted)}, PROJECTOR_RULES)

    x_INC = model.features(golden.input("image"))
    golden.check("patch_features", x_INC, atol=2e-5)
    logp_IN2 = model.selector(x_INC)
    golden.check("log_probs", logp_IN2)
    keep_IN = keep_sampled(logp_IN2, golden.input("gumbel_noise"))
    golden.check("keep", keep_IN.long())
    golden.check("lengths", keep_IN.sum(1))
    golden.check("merged_all", model.merger(x_INC, keep_IN), atol=2e-5)
    golden.check("merged_kept_packed", model.merger.kept(x_INC, keep_IN), atol=2e-5)
    ids_T = model.ids(x_INC, keep_IN)
    golden.check("code_ids_packed", ids_T)
    golden.check("z_q", model.quantizer.decode(ids_T))

    def understood(keep_IN: Tensor) -> list[Patches]:
        return [Patches(x_NC, keep_N, SOURCE) for x_NC, keep_N in zip(x_INC, keep_IN, strict=True)]

    golden.check("understanding_embeds_packed", way_in(understood(keep_IN)), atol=2e-5)
    spelling = LavitGrammarConfig(codes=golden.config["n_code"], patches=keep_IN.shape[1], most=keep_IN.shape[1])
    words = spelled(ids_T.split(keep_IN.sum(1).tolist()), spelling)
    golden.check("llm_ids_special_packed", torch.tensor(sum(words, [])))
    golden.check("llm_ids_packed", torch.tensor(sum((row[1:-1] for row in words), [])))

    keep_IN = model.keep(x_INC)  # the default leaves the dice out
    golden.check("argmax.lengths", keep_IN.sum(1))
    ids_T = model.ids(x_INC, keep_IN)
    golden.check("argmax.llm_ids_packed", FIRST + ids_T)
    golden.check("argmax.z_q", model.quantizer.decode(ids_T))
    golden.check("argmax.understanding_embeds_packed", way_in(understood(keep_IN)), atol=2e-5)


def check_preprocessing(golden: Golden) -> None:
    picture, size = PIL.Image.fromarray(golden.input("rgb_uint8").numpy()), golden.config["image_size"]
    pixels_13hw = prepare([picture], size, resize="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
    golden.check("pixel_values_pil_bicubic", pixels_13hw[0])
    model = tokenizer(replace_config(golden, vit_depth=1, merger_depth=1, vit_heads=4, width=16, merger_heads=4))
    assert torch.equal(model.pixels([Image(picture)]), pixels_13hw)
    golden.check("detok_vae", prepare([picture], picture.size[::-1], mean=(0.5,) * 3, std=(0.5,) * 3))
    # the published tensor path resizes without a filter, which we leave out; these are its numbers
    whole_13hw = prepare([picture], picture.size[::-1])
    rough_13hw = F.interpolate(whole_13hw, size=(224, 224), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    golden.check("detok_clip_224_every4th", ((rough_13hw - mean) / std)[..., ::4, ::4])
    asked = zip(golden.config["question_in"], golden.config["question_out"], strict=True)
    assert all(clean_question(question) == cleaned for question, cleaned in asked)


def replace_config(golden: Golden, **sizes: Any) -> Golden:
    """The file as if it were of other sizes, for a model that only reads its pixels."""
    other = Golden(golden.path)
    defaults = {"patch_size": 14, "mlp_ratio": 4.0, "n_code": 4, "code_dim": 4}
    other.config = {**defaults, **golden.config, **sizes}
    return other


# ------------------------------------------------------------------------------------------------ the decoder


def check_decoder(golden: Golden) -> None:
    made = detokenizer(golden, golden.state)
    features_INC = features_beside(golden)
    for edge, atol in (("", 1e-5), ("edge.", 5e-4)):
        z_TE, lengths_I = golden.input(f"{edge}z_q"), golden.input(f"{edge}lengths")

        def check(
            name: str, got: Tensor, *, edge: str = edge, atol: float = atol, some_I: Tensor = lengths_I > 0
        ) -> None:
            """An image without codes is only near: the official mask of -10000 costs it digits."""
            golden.check(f"{edge}{name}", got, atol=atol)
            torch.testing.assert_close(got[some_I], golden.out(f"{edge}{name}")[some_I], atol=1e-5, rtol=1e-4)

        decoder = made.decoder
        golden.check(f"{edge}in_proj", decoder.in_proj(z_TE))
        codes_TC, slots_IL = decoder.place(z_TE, lengths_I)
        x_INC = decoder.queries.expand(len(lengths_I), -1, -1)
        for number, block in enumerate(decoder.blocks):
            if number == 0:
                own_INC = block.self_attention(block.norm0(x_INC))
                golden.check(f"{edge}block0.self_attn", own_INC)
                cross_INC = block.to_codes(block.norm1(x_INC + own_INC), codes_TC, slots_IL)
                check("block0.cross_attn", cross_INC)
            x_INC = block(x_INC, codes_TC, slots_IL)
            check(f"block{number}", x_INC)
        check("norm", decoder.norm(x_INC))
        rebuilt_INC = decoder(z_TE, lengths_I)
        check("reconstruction", rebuilt_INC)
        if features_INC is None:
            golden.out(f"{edge}cos_to_target")
        else:
            check("cos_to_target", F.cosine_similarity(rebuilt_INC, features_INC, dim=-1))
        told = made.told(rebuilt_INC, (64, 64))
        if told.pooled_IP is None:
            check("unet_condition", told.tokens_ISC)
            continue
        check("prompt_embeds", told.tokens_ISC)
        check("pooled_prompt_embeds", told.pooled_IP)
        pool = made.head.pool
        x_INC = pool.tokens(rebuilt_INC)
        every = pool.proj(attend(pool.query(x_INC), pool.key(x_INC), pool.value(x_INC), pool.heads))
        check("attnpool_all_tokens", every)


KINDS = {
    "lavit_vit": check_vision_encoder,
    "lavit_selector": check_selector,
    "lavit_merger": check_merger,
    "lavit_quantizer": check_quantizer,
    "lavit_tokenizer": check_tokenizer,
    "lavit_preprocess": check_preprocessing,
    "lavit_decoder_lowres": check_decoder,
    "lavit_decoder_highres": check_decoder,
    "lavit_llm_inputs": check_llm_inputs,
    "lavit_cfg": check_guidance,
}


@torch.no_grad()
def test_lavit(golden: Golden, record_property: Callable[[str, object], None]) -> None:
    kind = kind_of(golden.stem, KINDS)
    assert kind, f"nothing is known about {golden.path.name}; its name begins with none of {sorted(KINDS)}"
    KINDS[kind](golden)
    golden.assert_all_checked()
    record_property("largest difference", golden.largest)
