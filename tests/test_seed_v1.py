"""SEED v1: codes enter as a linear layer of the codebook, and are drawn as if they were a prompt's states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import seed_release
from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.nn.new_rows import CodebookRows
from rebus.papers.seed.build import build, own_tensors
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.published import Published, convert_published
from rebus.papers.seed.published_decoder import TextLikeDetokenizer
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import PARTS, System, load
from rebus.visual import Codes, ImageSampling, Progress

CONFIG = seed_release.V1_CONFIG


@pytest.fixture(scope="module")
def system() -> System:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(CONFIG, None, PARTS, "cpu", torch.float32, generator=torch.Generator().manual_seed(0))


def codes(system: System, *ids: int) -> Codes:
    return Codes(torch.tensor(ids), system.detokenizer.codes.source)


def test_a_code_enters_as_a_linear_layer_of_its_entry(system: System) -> None:
    rows, entry_KC = system.lm.llm.rows.input, system.tokenizer.quantizer.codebook_KC
    assert isinstance(rows, CodebookRows)
    ids = CONFIG.grammar.first_code + torch.arange(seed_release.CODES)
    torch.testing.assert_close(system.lm.llm.embed(ids[None])[0], rows.proj(entry_KC))
    assert "codebook_VC" not in dict(rows.named_parameters())


def test_the_layer_learns_and_the_codebook_does_not(system: System) -> None:
    source = system.grammar.source
    image = Image(generated=Codes(torch.tensor([1, 2, 3, 4]), source))
    document = Document((user("a cat"), assistant(image)))
    batch = collate([system.grammar.serialize(document, template="plain", loss="all")], pad_id=0)
    rows = system.lm.llm.rows
    for parameter in rows.parameters():
        parameter.requires_grad_(True)
    system.lm(batch).total.backward()
    assert rows.input.proj.weight.grad.abs().sum() > 0 and rows.input.marks_VD.grad.abs().sum() > 0
    assert rows.input.codebook_VC.grad is None
    system.lm.zero_grad()


def test_prompts_are_the_papers() -> None:
    grammar = build(CONFIG, None, ("lm",), "cpu", torch.float32).grammar
    assert isinstance(grammar, SeedGrammar)
    image = Image(understood=Codes(torch.tensor([1, 2, 3, 4]), grammar.source))
    caption = grammar.serialize(Document((user(image), assistant("a cat"))), template="plain").ids
    words = grammar.text.encode("A photo of ") + grammar.text.encode("a cat")
    assert caption[1 + 6 : 1 + 6 + len(words)] == words
    drawing = grammar.serialize(Document((user("a cat"),)), reply="image", template="plain").ids
    assert grammar.text.decode(drawing[1:]).strip() == "Generate an image a cat"


def test_it_reads_writes_and_draws(system: System) -> None:
    pixels = PIL.Image.effect_noise((20, 16), 90).convert("RGB")
    asked = Document((user(Image(pixels), "a cat"),))
    (said,) = system.generate([asked], modality="image", sampling=Sampling(max_new_tokens=12))
    (drawn,) = [part for part in said.content if isinstance(part, Image)]
    assert drawn.pixels is not None and drawn.pixels.size == (16, 16)


def test_images_are_those_of_stable_diffusion_told_these_states(tmp_path: Path) -> None:
    seed_release.write_tokenizer(tmp_path, CONFIG.tokenizer)
    pipeline = seed_release.write_decoder(tmp_path / "sd", unclip=False)
    found = Published(tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth", decoder=tmp_path / "sd")
    convert_published(found, tmp_path / "c", "v1", config=CONFIG)
    system = load("seed:v1", weights=tmp_path / "c", parts=("tokenizer", "detokenizer"), dtype=torch.float32)
    detokenizer = system.detokenizer
    assert isinstance(detokenizer, TextLikeDetokenizer)
    told, negative = codes(system, 3, 1, 4, 1), codes(system, 9, 9, 9, 9)
    empty_ISC = pipeline.encode_prompt("", "cpu", 1, False)[0]
    torch.testing.assert_close(detokenizer.prompt_1SC, empty_ISC)
    for away in (None, negative):
        away_ISC = empty_ISC if away is None else detokenizer.prompts([away]).detach()
        theirs = pipeline(
            prompt_embeds=detokenizer.prompts([told]).detach(),
            negative_prompt_embeds=away_ISC,
            latents=torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))[None],
            guidance_scale=7.5,
            num_inference_steps=3,
            output_type="np",
        ).images[0]
        generators = [torch.Generator().manual_seed(5)]
        drawn = detokenizer.decode(
            [told], sources=[None], negatives=[away], generators=generators, sampling=ImageSampling(steps=3)
        )
        (ours,) = [np.asarray(image) for image in drawn if not isinstance(image, Progress)]
        assert np.abs(ours - theirs * 255).max() <= 1
    with pytest.raises(RebusError, match="Convert without a language model"):
        convert_published(replace(found, language=tmp_path), tmp_path / "d", "v1", config=CONFIG)


def test_saving_loses_nothing_and_folding_changes_nothing(system: System, tmp_path: Path) -> None:
    parts = own_tensors(CONFIG, system.tokenizer, system.lm.llm, system.detokenizer)
    saved = SavedSystem("seed:v1", config_to_json(CONFIG))
    save_system(tmp_path / "s", saved, parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the base of random weights is not part of what was saved
        again = build(CONFIG, tmp_path / "s", PARTS, "cpu", torch.float32)
    ids_BL, positions = torch.tensor([[5, 262, 270, 278, 279, 9]]), torch.arange(6)[None]

    def logits(llm) -> torch.Tensor:
        return llm.logits(llm.hidden(llm.embed(ids_BL), positions)[0])

    expected = logits(again.lm.llm)
    rows = again.lm.llm.rows.input
    torch.testing.assert_close(rows.proj.weight, system.lm.llm.rows.input.proj.weight)
    torch.testing.assert_close(rows.codebook_VC, system.tokenizer.quantizer.codebook_KC)
    merged = again.lm.llm.merge()
    torch.testing.assert_close(logits(again.lm.llm), expected, atol=1e-5, rtol=1e-4)
    assert merged.get_input_embeddings().num_embeddings == 262 + 18


def test_a_head_that_does_not_fit_the_decoder() -> None:
    wrong = replace(CONFIG, tokenizer=seed_release.TOKENIZER)
    with pytest.raises(RebusError, match="reads prompts of"):
        build(wrong, None, ("detokenizer",), "cpu", torch.float32)
