"""SEED's tokenizer as documents use it: codes serve both purposes, are made once, and do not depend on the mode."""

from __future__ import annotations

from dataclasses import replace

import PIL.Image
import pytest
import torch

from rebus.document import Image
from rebus.errors import RebusError
from rebus.nn.vit import ViT, ViTConfig
from rebus.papers.seed.bank import nested_dropout
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.visual import Codes

CONFIG = SeedTokenizerConfig(
    vision=ViTConfig(image_size=16, patch=8, width=12, depth=2, heads=2, mlp_hidden=16),
    qformer=QFormerConfig(queries=6, width=12, depth=3, heads=2, mlp_hidden=16, source_width=12),
    codebook_size=32,
    code_width=4,
    decoder_depth=1,
    decoder_heads=2,
    decoder_hidden=16,
    head_widths=(8, 4),
    image_width=10,
)


def tokenizer(config: SeedTokenizerConfig = CONFIG) -> SeedTokenizer:
    return SeedTokenizer(config, source="seed:test 1", generator=torch.Generator().manual_seed(0))


def picture(shade: int) -> Image:
    return Image(PIL.Image.linear_gradient("L").rotate(shade).convert("RGB"))


def test_encoding_fills_both_purposes_once_and_keeps_the_mode() -> None:
    model = tokenizer().train()
    first, second = model.encode([picture(10), picture(80)], {"generation"})
    assert model.training
    assert isinstance(first.generated, Codes) and first.understood is first.generated
    assert first.generated.source == "seed:test 1" and first.generated.ids_N.shape == (6,)
    again = model.encode([first, replace(second, pixels=None)], {"understanding", "generation"})
    assert again[0].generated is first.generated and again[1].understood is second.understood
    assert torch.equal(model.encode([picture(10)], {"understanding"})[0].understood.ids_N, first.generated.ids_N)


def test_codes_of_another_tokenizer_are_left_alone() -> None:
    foreign = Codes(torch.zeros(6, dtype=torch.long), "other")
    image = replace(picture(0), understood=foreign)
    assert tokenizer().encode([image], {"understanding"})[0] is image
    with pytest.raises(RebusError, match="Image 2 of 2 has no pixels and lacks the codes for generation"):
        tokenizer().encode([picture(0), Image(understood=foreign)], {"generation"})


def test_a_frozen_qformer_has_no_dropout_while_the_rest_trains() -> None:
    model = tokenizer().train()
    x_ISC = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(model.causal_embeddings(x_ISC), model.causal_embeddings(x_ISC))
    model.qformer.requires_grad_(False)
    model.train()
    assert model.training and not model.qformer.training
    assert torch.equal(model.causal_embeddings(x_ISC), model.causal_embeddings(x_ISC))


def test_heads_give_one_vector_or_one_for_each_reverse_query() -> None:
    ids_IN = torch.arange(12).view(2, 6)
    assert tokenizer().image_embedding(ids_IN).shape == (2, 10)
    assert tokenizer(replace(CONFIG, head="reverse")).image_embedding(ids_IN).shape == (2, 10)
    v1 = tokenizer(replace(CONFIG, head="reverse", reverse_queries=7))
    assert v1.image_embedding(ids_IN).shape == (2, 7, 10)


def test_a_vision_encoder_is_shared_only_if_it_is_the_one_described() -> None:
    vit = ViT(CONFIG.vision)
    assert SeedTokenizer(CONFIG, visual_encoder=vit).visual_encoder is vit
    with pytest.raises(RebusError, match="is not the one its config describes"):
        SeedTokenizer(CONFIG, visual_encoder=ViT(replace(CONFIG.vision, depth=1)))
    with pytest.raises(RebusError, match="13 against 12"):
        tokenizer(replace(CONFIG, qformer=replace(CONFIG.qformer, source_width=13)))


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="reads 16 x 16 images in patches of 8, but got 24 x 24"):
        tokenizer().features(torch.zeros(1, 3, 24, 24))


ADDING = replace(CONFIG, codebook="residual", codebook_size=24, code_width=10, start_per_patch=2, start_width=7)


def test_codes_that_add_up_begin_as_a_reading_of_patches_and_are_the_embedding_before_training() -> None:
    model = tokenizer(ADDING)
    pixels_I3hw = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x_ISC = model.features(pixels_I3hw)
    start_IE = model.start(x_ISC)
    z_INE = model.codes_before(model.causal_embeddings(x_ISC), start_IE)
    assert start_IE is not None and torch.equal(z_INE, start_IE[:, None].expand(3, 6, 10))
    assert not start_IE[:, 7:].any() and start_IE[:, :7].std() > 0
    ids_IN = model.ids(pixels_I3hw)
    assert (ids_IN // 4 == torch.arange(6)).all()
    assert torch.allclose(model.image_embedding(ids_IN), model.quantizer.codebook_KC[ids_IN].sum(1), atol=1e-6)


def test_codes_may_start_from_all_that_the_embedding_is_made_of() -> None:
    model = tokenizer(replace(ADDING, start_contrast=3))
    x_ISC = model.features(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    start_IE = model.start(x_ISC)
    assert start_IE is not None and start_IE.shape == (3, 10)
    assert torch.allclose(start_IE[:, 7:].square().mean(1), torch.ones(3))
    moved_ISC = x_ISC.clone()
    moved_ISC[:, 0] += torch.linspace(0, 1, x_ISC.shape[-1])  # the class token: only the second part reads it
    there_IE = model.start(moved_ISC)
    assert torch.equal(there_IE[:, :7], start_IE[:, :7]) and not torch.allclose(there_IE[:, 7:], start_IE[:, 7:])


def test_codes_that_add_up_are_as_wide_as_the_embedding() -> None:
    with pytest.raises(RebusError, match="width is 4 and the embedding's 10"):
        tokenizer(replace(ADDING, code_width=4))
    with pytest.raises(RebusError, match="width 10 cannot start from a reading of width 11"):
        tokenizer(replace(ADDING, start_contrast=4))


def test_cutting_keeps_the_sum_from_some_place_on() -> None:
    z_INE = torch.arange(6.0)[None, :, None].expand(400, 6, 2)
    torch.manual_seed(0)
    whole, half = nested_dropout(z_INE, 0.0), nested_dropout(z_INE, 0.5)
    assert torch.equal(whole, z_INE)
    assert (half.diff(dim=1) >= 0).all() and torch.equal(half.diff(dim=1) > 0, half[:, 1:] == z_INE[:, 1:])
    assert 0.35 < (half[:, -1, 0] < 5).float().mean() < 0.5  # five places of six end early
