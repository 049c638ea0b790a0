"""SEED against numbers of the official modules: every golden file is a case of its own.

Dimension key: I images · N queries or codes · S image tokens · L words · C width · E code width · K codebook entries
"""

from __future__ import annotations

import torch
from einops import rearrange
from tests.parity.golden import Golden, kind_of
from tests.parity.seed_prompts import check_prompts
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rebus.checkpoint import Drop, Move, Rule, convert, export
from rebus.diffusion.unclip import UnclipCondition, guidance_labels, squared_cosine_alphas
from rebus.nn.quantize import VectorQuantizer, distances
from rebus.nn.vit import ViTConfig, resize_positions
from rebus.papers.seed.convert import CONTRASTIVE_RULES, RULES, TEXT_RULES
from rebus.papers.seed.losses import ContrastiveHeads, caption_loss, contrastive_loss, stage2_losses
from rebus.papers.seed.qformer import QFormerConfig, TextBranch, causal_mask, joint_mask
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig

NAMES = r"seed_(?!x_)"
SUFFIX = (".safetensors", ".json")

DEC = 3
"""Id of the token that begins a caption, in the small vocabulary of the golden files."""


# ------------------------------------------------------------------------------------------------ building


def tokenizer(golden: Golden, *parts: str, head: str = "mlp") -> SeedTokenizer:
    """A tokenizer of the file's sizes; of its `parts` (prefixes of our names; none: all) every tensor is converted."""
    vit, qf, decoder = golden.config["vit"], golden.config["qf"], golden.config["decoder"]
    config = SeedTokenizerConfig(
        vision=ViTConfig(
            image_size=vit["image"],
            patch=vit["patch"],
            width=vit["width"],
            depth=vit["depth"],
            heads=vit["heads"],
            mlp_hidden=int(vit["width"] * vit["mlp_ratio"]),
        ),
        qformer=QFormerConfig(
            queries=qf["queries"],
            width=qf["hidden"],
            depth=qf["layers"],
            heads=qf["heads"],
            mlp_hidden=qf["inter"],
            source_width=vit["width"],
            cross_every=qf["cross_freq"],
        ),
        codebook_size=golden.config["codebook"]["n"],
        code_width=golden.config["codebook"]["dim"],
        decoder_depth=decoder["depth"],
        decoder_heads=decoder["heads"],
        decoder_hidden=int(qf["hidden"] * decoder["mlp_ratio"]),
        head="reverse" if head == "reverse" else "mlp",
        reverse_depth=golden.config["reverse_layers"],
        image_width=golden.config["image_dim"],
    )
    module = SeedTokenizer(config).eval()
    fill(module, golden.state, RULES["tokenizer"], *parts)
    return module


def fill(module: nn.Module, theirs: dict[str, Tensor], rules: tuple[Rule, ...], *parts: str) -> None:
    """Converts strictly what `parts` of the module need (none: all of it) and loads that."""
    ours = {name: x for name, x in module.state_dict().items() if not parts or name.startswith(parts)}
    module.load_state_dict({**module.state_dict(), **convert(theirs, rules, ours).tensors})


def check_gradients(golden: Golden, module: nn.Module, rules: tuple[Rule, ...]) -> None:
    """Compares every gradient that the file has for parameters of `module`, by its official name."""
    ours = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    theirs = export(ours, rules)
    for name in golden.part("out.grad").keys() & theirs.keys():
        golden.check(f"grad.{name}", theirs[name])


def attention_weights(layer: nn.Module, x_INC: Tensor, mask: Tensor) -> Tensor:
    """Softmax weights [I, H, N, N] that a layer's self-attention gives."""
    attention = layer.self_attention.attention
    heads = "i n (h e) -> i h n e"
    q, k = (rearrange(part(x_INC), heads, h=attention.heads) for part in (attention.query, attention.key))
    return (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)


# ------------------------------------------------------------------------------------------------ checks


def check_vision_encoder(golden: Golden) -> None:
    model = tokenizer(golden, "visual_encoder", "vision_norm")
    vit, pixels = model.visual_encoder, golden.input("image")
    golden.check("patch_embed", rearrange(vit.patch_embed(pixels), "i c h w -> i (h w) c"))
    x_INC = vit.embed(pixels)
    golden.check("embeddings", x_INC)
    golden.check("attn0", vit.blocks[0].attn(vit.blocks[0].norm1(x_INC)))
    golden.check("mlp0_on_embeddings", vit.blocks[0].mlp(vit.blocks[0].norm2(x_INC)))
    for number, block in enumerate(vit.blocks):
        x_INC = block(x_INC)
        golden.check(f"block{number}", x_INC)
    golden.check("features", model.features(pixels))
    golden.check("ln_vision", model.vision_norm(x_INC))


def check_positions(golden: Golden) -> None:
    extra = golden.config["extra_tokens"]
    for before, after in golden.config["pairs"]:
        name = f"pos_embed_{before}to{after}"
        golden.check(name, resize_positions(golden.input(name), after, extra=extra))


def check_qformer(golden: Golden) -> None:
    qformer = tokenizer(golden, "qformer").qformer
    source_ISC = golden.input("encoder_hidden_states")
    x_INC = qformer.start(len(source_ISC))
    mask = causal_mask(x_INC.shape[1], x_INC)
    golden.check("self_mask_additive", mask)
    golden.check("self_attn_probs_layer0_sample0", attention_weights(qformer.layers[0], x_INC, mask)[0])
    golden.check("hidden0", x_INC)
    for number, layer in enumerate(qformer.layers, 1):
        x_INC = layer.queries(layer.self_attention(x_INC, x_INC, mask), source_ISC, None)
        golden.check(f"hidden{number}", x_INC)
    golden.check("last_hidden_state", qformer(source_ISC))
    golden.check("last_hidden_state", qformer(source_ISC, golden.input("encoder_attention_mask_full")))
    golden.check("last_hidden_state_masked", qformer(source_ISC, golden.input("encoder_attention_mask_partial")))

    before_INC = qformer(source_ISC)
    with torch.no_grad():
        qformer.query_tokens[:, 20] += 1
    golden.check("last_hidden_state_query20_plus1", qformer(source_ISC))
    # the file's change, the same in every channel, is taken out again by the first norm; this one is not
    with torch.no_grad():
        qformer.query_tokens[:, 20, ::2] += 1
    after_INC = qformer(source_ISC)
    assert torch.equal(before_INC[:, :20], after_INC[:, :20])
    assert ((before_INC - after_INC)[:, 20:].abs().amax(-1) > 1e-3).all()


def check_quantizer(golden: Golden) -> None:
    model = tokenizer(golden, "to_code", "quantizer", "from_code")
    quantizer = model.quantizer
    z_INE = model.codes_before(golden.input("qformer_out")).detach().requires_grad_()
    golden.check("encode_task", z_INE)
    distance_TK = distances(z_INE.flatten(0, 1), quantizer.codebook_KC)
    golden.check("distances", distance_TK.view(golden.out("distances").shape))

    result = quantizer(z_INE)
    golden.check("ids", result.ids)
    golden.check("quantized", result.x)
    golden.check("decode_task", model.from_code(result.x))
    (straight,) = torch.autograd.grad(result.x, z_INE, golden.input("upstream_grad"), retain_graph=True)
    golden.check("grad_straight_through", straight)
    wrt_z, wrt_codebook = torch.autograd.grad(result.loss, (z_INE, quantizer.codebook_KC))
    golden.check("loss_legacy", result.loss)
    golden.check("grad_loss_wrt_z", wrt_z)
    golden.check("grad_loss_wrt_codebook", wrt_codebook)

    other = VectorQuantizer(*quantizer.codebook_KC.shape, beta=0.25, order="standard")
    other.load_state_dict(quantizer.state_dict())
    golden.check("loss_non_legacy", other(z_INE).loss)
    golden.check("lookup", quantizer.decode(golden.input("lookup_ids")))


def check_tokenizer(golden: Golden) -> None:
    model = tokenizer(golden)
    x_ISC = model.features(golden.input("image"))
    golden.check("features", x_ISC)
    golden.check("ln_vision", model.vision_norm(x_ISC))
    x_INC = model.causal_embeddings(x_ISC)
    golden.check("qformer_out", x_INC)
    golden.check("encode_task", model.codes_before(x_INC))
    codes = model.quantize(x_INC)
    golden.check("ids", codes.ids)
    golden.check("ids", model.ids(golden.input("image")))
    golden.check("quantized", codes.x)
    golden.check("decode_task_st", model.from_code(codes.x))
    golden.check("decode_task_lookup", model.from_code(model.quantizer.decode(codes.ids)))
    decoded_INC = model.image_decoder(model.from_code(codes.x))
    golden.check("blocks_image_out", decoded_INC)
    golden.check("image_down", model.head.shrink(decoded_INC))
    golden.check("image_embeds", model.embed_codes(codes.x))
    golden.check("image_embeds", model.image_embedding(codes.ids))
    golden.check("image_embeds_from_ids2", model.image_embedding(golden.input("ids2")))
    golden.check("blocks_recon_out", model.reconstruct_embeddings(codes.x))


def check_reverse_head(golden: Golden) -> None:
    model = tokenizer(golden, "quantizer", "from_code", "image_decoder", "head", head="reverse")
    decoded_INC = model.from_code(model.quantizer.decode(golden.input("ids")))
    golden.check("decode_task", decoded_INC)
    golden.check("blocks_image_out", model.image_decoder(decoded_INC))
    golden.check("reverse_out", model.head.qformer(model.image_decoder(decoded_INC)))
    golden.check("image_embeds", model.image_embedding(golden.input("ids")))


def check_stage1(golden: Golden) -> None:
    model = tokenizer(golden, "visual_encoder", "vision_norm", "qformer")
    qf, qformer = golden.config["qf"], model.qformer
    both = nn.ModuleDict(
        {
            "text": TextBranch(qformer.config, qf["vocab"], qf["max_pos"]),
            "heads": ContrastiveHeads(qf["hidden"], golden.config["proj_dim"]),
        }
    ).eval()
    rest = Drop("{rest*}", "the query half, which the tokenizer has")
    fill(both, golden.state, (*TEXT_RULES, *CONTRASTIVE_RULES, rest))
    text, heads = both["text"], both["heads"]
    ids_IL, mask_IL = golden.input("input_ids"), golden.input("attention_mask")

    source_ISC = model.vision_norm(model.features(golden.input("image")))
    x_INC = model.qformer(source_ISC)
    golden.check("qformer_out", x_INC)
    x_ILC = text.text(qformer, ids_IL, mask_IL)
    golden.check("text_out", x_ILC)
    image_IC, text_IC = heads.image(x_INC), heads.text(x_ILC)
    golden.check("image_feat_last_query", image_IC)
    golden.check("text_feat_cls", text_IC)
    golden.check("sim_i2t_over_temp", image_IC @ text_IC.T / heads.temperature)
    loss = contrastive_loss(image_IC, text_IC, heads.temperature)
    golden.check("loss_itc", loss)
    golden.check("loss_total", loss)

    loss.backward()
    check_gradients(golden, model, RULES["tokenizer"])
    check_gradients(golden, both, TEXT_RULES + CONTRASTIVE_RULES)

    # the two branches that are off in the release
    mask = joint_mask(qformer.config.queries, mask_IL, source_ISC)
    golden.check("joint_self_mask_additive_sample0", mask[:1])
    golden.check("joint_out", text.joint(qformer, source_ISC, ids_IL, mask))
    caption_IL = ids_IL.clone()
    caption_IL[:, 0] = DEC
    logits = text.caption_logits(qformer, source_ISC, caption_IL, mask_IL)
    golden.check("loss_lm_optional", caption_loss(logits, caption_IL, mask_IL))


def check_stage2(golden: Golden) -> None:
    model = tokenizer(golden, head="reverse")
    x_INC = model.causal_embeddings(model.features(golden.input("image"))).detach()
    golden.check("qformer_out", x_INC)
    codes = model.quantize(x_INC)
    golden.check("ids", codes.ids)
    image_IC = model.embed_codes(codes.x)
    golden.check("image_embeds", image_IC)
    rebuilt_INC = model.reconstruct_embeddings(codes.x)
    losses = stage2_losses(codes.loss, image_IC, golden.input("clip_image_embeds"), rebuilt_INC, x_INC)
    golden.check("loss_embed_x5", losses.quantiser)
    golden.check("loss_distil_image_x05", losses.image)
    golden.check("loss_recon_s_x2", losses.embedding)
    golden.check("loss_total", losses.total)

    losses.total.backward()
    check_gradients(golden, model, RULES["tokenizer"])


def check_unclip(golden: Golden) -> None:
    condition = UnclipCondition(golden.config["dim"], squared_cosine_alphas(golden.config["num_train_timesteps"]))
    condition.load_state_dict(golden.part("state.image_normalizer"))
    assert golden.config["beta_schedule"] == "squaredcos_cap_v2"
    embeds, noise = golden.input("image_embeds"), golden.input("noise")
    for name in golden.part("out"):
        if name.startswith("class_labels_level"):
            golden.check(name, condition(embeds, int(name.removeprefix("class_labels_level")), noise))
        if name.startswith("alphas_cumprod_"):
            golden.check(name, condition.alphas_T[[int(level) for level in name.split("_")[2:]]])
    label = condition(embeds, 0, noise)
    golden.check("cfg_batch_no_negative", guidance_labels(label))
    negative = condition(golden.input("negative_image_embeds"), 0, golden.input("negative_noise"))
    golden.check("cfg_batch_with_negative", guidance_labels(label, negative))


def check_language_model(golden: Golden) -> None:
    sizes = golden.config
    config = LlamaConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["inter"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        rms_norm_eps=sizes["eps"],
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    inverse_frequency = Drop("model.layers.{n}.self_attn.rotary_emb.inv_freq", "computed from the config")
    fill(model, golden.state, (inverse_frequency, Move("{rest*}", "{rest*}")))
    ids_BL = golden.input("input_ids")
    result = model(ids_BL, labels=golden.input("labels"), output_hidden_states=True)
    for number, x_BLC in enumerate(result.hidden_states):
        golden.check(f"hidden{number}", x_BLC)
    golden.check("logits", result.logits)
    golden.check("loss", result.loss)

    steps = []
    step = model(ids_BL, use_cache=True)
    while True:
        steps.append(step.logits[:, -1:].argmax(-1))
        if len(steps) == 6:
            break
        step = model(steps[-1], past_key_values=step.past_key_values, use_cache=True)
    golden.check("greedy_next6", torch.cat(steps, dim=1))


KINDS = {
    "seed_eva_vit": check_vision_encoder,
    "seed_pos_embed": check_positions,
    "seed_qformer": check_qformer,
    "seed_quantizer": check_quantizer,
    "seed_tokenizer": check_tokenizer,
    "seed_reverse_qformer": check_reverse_head,
    "seed_train_stage1": check_stage1,
    "seed_train_stage2": check_stage2,
    "seed_llama": check_language_model,
    "seed_unclip_condition": check_unclip,
    "seed_prompts": check_prompts,
}


def test_seed(golden: Golden) -> None:
    kind = kind_of(golden.stem, KINDS)
    assert kind, f"nothing is known about {golden.path.name}; its name begins with none of {sorted(KINDS)}"
    KINDS[kind](golden)
    golden.assert_all_checked()
    print(f"{golden.stem}: largest difference {golden.largest:.1e}")  # pytest -rP shows it
