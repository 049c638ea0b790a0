"""SEED v1 at mini size: its stages learn what they should from a stage 1 made for the mini; what they leave is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lavit_mini import write_work
from rebus.checkpoint import config_from_json, config_to_json
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.mini.pack import pack as pack_shared
from rebus.nn.new_rows import CodebookRows
from rebus.packages import embedded
from rebus.papers.seed import pack as packing
from rebus.papers.seed.build import build
from rebus.papers.seed.detokenizer import StatesDetokenizer, StatesDetokenizerConfig, mini_detokenizer
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import CodebookInit, LanguageConfig
from rebus.papers.seed.pack import pack, unpack
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.spelling import v1_mini
from rebus.papers.seed.stages import detokenizer, stage1_qformer, stage2_codebook, stage3_pretrain
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import PLAIN_TOKENIZER, TINY, V1_MINI, VARIANTS, SeedConfig
from rebus.sampling import Sampling
from rebus.system import load
from rebus.train import Optim, Stage, fit
from rebus.visual import Codes, ImageSampling

SHORT = Optim(steps=1, precision="fp32")
CODES = 32
FIRST = replace(
    PLAIN_TOKENIZER,
    qformer=QFormerConfig(queries=4, width=32, depth=2, heads=2, mlp_hidden=64, source_width=192, dropout=0.0),
    codebook_size=64,
    code_width=8,
    decoder_depth=1,
    decoder_heads=2,
    decoder_hidden=64,
    head_widths=(8, 4),
)
TOKENIZER = replace(
    FIRST,
    codebook="residual",
    codebook_size=CODES,
    head="reverse",
    reverse_depth=2,
    reverse_queries=64,
    image_width=192,
)
SYSTEM = replace(
    V1_MINI,
    tokenizer=TOKENIZER,
    grammar=v1_mini(262, CODES, 4, per_query=True),
    language=LanguageConfig(
        base=TINY.language.base,
        new_words=CODES + 2,
        lora_rank=2,
        lora_alpha=4,
        rows=CodebookInit(codes=CODES, code_width=8),
    ),
    detokenizer=StatesDetokenizerConfig(steps=2),
)
SECOND = replace(
    stage2_codebook.CONFIGS["v1-mini"], tokenizer=TOKENIZER, kmeans=True, revive_every=0, batch=4, optim=SHORT
)
PIXELS = detokenizer.Config(tokenizer=TOKENIZER, detokenizer=SYSTEM.detokenizer, true_share=0.5, batch=2, steps=1)
THIRD = replace(
    stage3_pretrain.CONFIGS["v1-mini"],
    system=SYSTEM,
    mix={"caption": 0.5, "draw": 0.5},
    batch=2,
    base_dtype="fp32",
    optim=SHORT,
    lr=1e-2,
    row_lr=1e-2,
)


@dataclass
class Trained:
    """A work folder after all stages, the stages, and what each has changed."""

    work: Path
    stages: dict[str, Stage]
    changed: dict[str, set[str]]


def run(stage: Stage, work: Path) -> set[str]:
    before: Mapping[str, Tensor] = {name: x.clone() for name, x in stage.module.state_dict().items()}
    fit(stage, work / stage.name, device="cpu")
    after = stage.module.state_dict()
    return {".".join(name.split(".")[:2]) for name, x in after.items() if not torch.equal(before[name], x)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Stage 1 is what unpacking a mini leaves: a whole tokenizer, another codebook and another head among it."""
    work = write_work(tmp_path_factory.mktemp("work"))
    whole = SeedTokenizer(FIRST, generator=torch.Generator().manual_seed(0)).state_dict()
    first = work / "seed.stage1_qformer"
    first.mkdir()
    kept = {f"tokenizer.{name}": x for name, x in whole.items() if not name.startswith("visual_encoder.")}
    save_file(kept, first / "weights.safetensors")
    found = Trained(work, {}, {})
    for module, config in ((stage2_codebook, SECOND), (detokenizer, PIXELS), (stage3_pretrain, THIRD)):
        stage = module.stage(config, work)
        if module is stage3_pretrain:
            stage.evals = []
            check_start(stage.module)
        found.stages[stage.name], found.changed[stage.name] = stage, run(stage, work)
    return found


def check_start(module: LanguageTraining) -> None:
    """Input rows are a linear layer of the tokenizer's codebook, which begins from captions."""
    rows = module.lm.llm.rows
    assert isinstance(rows.input, CodebookRows) and rows.input.proj.bias.any()
    torch.testing.assert_close(rows.input.codebook_VC, module.tokenizer.quantizer.codebook_KC)


def test_each_stage_trains_its_part_alone(trained: Trained) -> None:
    parts = {f"tokenizer.{part}" for part in stage2_codebook.PARTS}
    counts = {"usage.counts_K", "usage.batches"}  # which nothing but their own resuming needs
    assert trained.changed["seed.stage2_codebook"] == parts | counts
    assert trained.changed["seed.detokenizer"] == {"detokenizer.denoiser", "detokenizer.draft"}
    assert trained.changed["seed.stage3_pretrain"] == {"lm.llm"}
    module = trained.stages["seed.stage3_pretrain"].module
    learned = {name for name, x in module.named_parameters() if x.requires_grad}
    assert {name for name in learned if ".rows." in name} == {
        f"lm.llm.rows.{name}" for name in ("input.proj.weight", "input.proj.bias", "input.marks_VD", "output.weight_VD")
    }
    torch.testing.assert_close(module.lm.llm.rows.input.codebook_VC, module.tokenizer.quantizer.codebook_KC)


def test_codes_give_back_the_states_that_the_denoiser_was_told(trained: Trained) -> None:
    data = Frozen(trained.work)
    tokenizer = trained.stages["seed.stage2_codebook"].module.tokenizer
    rows = data.states("val", [0, 2])
    given = tokenizer.image_embedding(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert rows.shape == given.shape == (2, 64, 192)
    whole = data.vision.vit(data.bank("val").pixels([0, 2]))
    torch.testing.assert_close(rows, data.vision.norm(whole)[:, 1:], atol=2e-2, rtol=2e-2)  # kept in half precision


def test_the_system_is_packed_loaded_and_unpacked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.VARIANTS, "v1-mini", SYSTEM)
    pack_shared(trained.work, tmp_path / "mini")
    saved = pack(trained.work, tmp_path / "seed-v1-mini", "v1-mini")
    assert (saved.name, saved.base, saved.source) == ("seed:v1-mini", "mini", "trained by runs/seed_v1_mini.sh")
    assert not [name for name in saved.tensors("tokenizer") if name.startswith(("visual_encoder.", "head.shrink."))]
    assert {name.partition(".")[0] for name in saved.tensors("detokenizer")} == {"denoiser", "draft"}
    system = load("seed:v1-mini", weights=tmp_path / "seed-v1-mini", dtype=torch.float32)
    assert isinstance(system.detokenizer, StatesDetokenizer)
    module = trained.stages["seed.detokenizer"].module
    for name, x in system.detokenizer.denoiser.state_dict().items():
        torch.testing.assert_close(x, module.detokenizer.denoiser.state_dict()[name], atol=2e-3, rtol=2e-3)
    rows, left = system.lm.llm.rows.input, trained.stages["seed.stage3_pretrain"].module.lm.llm.rows.input
    assert torch.equal(rows.proj.weight, left.proj.weight.half().float())  # kept in half precision
    assert torch.equal(rows.codebook_VC, left.codebook_VC.half().float())
    assert torch.equal(rows.codebook_VC, system.tokenizer.quantizer.codebook_KC)

    picture = Image(PIL.Image.linear_gradient("L").convert("RGB"))
    asked = Document((user(picture, "a ramp"),))
    (said,) = system.generate([asked], modality="image", sampling=Sampling(max_new_tokens=12))
    assert said.images[0].pixels.size == (64, 64) and len(said.images[0].generated.ids_N) == 4

    written = unpack(tmp_path / "seed-v1-mini", tmp_path / "again")
    places = packing.V1_PLACES.values()
    assert {file.parent.name for file in written} == {stage for held in places for stage, _ in held}
    for name in ("mini.vision", "mini.vae", "mini.denoiser", "bank", "cache", "emoji"):
        (tmp_path / "again" / name).symlink_to(trained.work / name)
    stage2_codebook.stage(SECOND, tmp_path / "again")  # training goes on from there


def test_a_negative_image_takes_the_place_of_nothing() -> None:
    codes = SeedTokenizer(TOKENIZER, generator=torch.Generator().manual_seed(0))
    made = mini_detokenizer(SYSTEM.detokenizer, codes)
    first, second = (Codes(torch.tensor(ids), codes.source) for ids in ([1, 2, 3, 4], [5, 6, 7, 8]))
    generators = [torch.Generator()] * 2
    with torch.no_grad():
        told, away = made.conditions([first, first], [None, second], generators, ImageSampling())
        other, _ = made.conditions([second], [None], generators[:1], ImageSampling())
        torch.testing.assert_close(told.extra_Iehw, made.draft(told.tokens_ISC))
    assert told.tokens_ISC.shape == (2, 64, 192) and not told.vector_ID.any()
    assert not away.tokens_ISC[0].any() and not away.vector_ID.any() and not away.extra_Iehw[0].any()
    torch.testing.assert_close(away.tokens_ISC[1], other.tokens_ISC[0])
    torch.testing.assert_close(away.extra_Iehw[1], other.extra_Iehw[0])


def test_prompts_are_the_papers_on_the_minis_marks() -> None:
    grammar = build(replace(SYSTEM, weights=None, base=None), None, ("lm",), "cpu", torch.float32).grammar
    assert isinstance(grammar, SeedGrammar)
    image = Image(understood=Codes(torch.tensor([1, 9, 17, 25]), grammar.source))
    for template in ("plain", "chat"):
        said = grammar.serialize(Document((user(image), assistant("a cat"))), template=template).ids
        words = grammar.text.encode("A photo of ") + grammar.text.encode("a cat")
        assert said == [grammar.special.bos, *said[1:7], *words, grammar.special.eos]
        drawing = grammar.serialize(Document((user("a cat"),)), reply="image", template=template).ids
        assert grammar.text.decode(drawing[1:]) == "Generate an image a cat"


def test_rows_are_fitted_exactly_where_a_linear_layer_can() -> None:
    generator = torch.Generator().manual_seed(0)
    entries_VC, weight_DC, bias_D = (torch.randn(*shape, generator=generator) for shape in ((20, 4), (6, 4), (6,)))
    rows = CodebookRows(entries_VC, torch.zeros(2, 6))
    rows.fit(entries_VC @ weight_DC.T + bias_D)
    torch.testing.assert_close(rows.proj.weight, weight_DC, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.proj.bias, bias_D, atol=1e-4, rtol=1e-4)
    assert not rows.marks_VD.any()


def test_the_variant_is_what_the_stages_train() -> None:
    again = config_from_json(SeedConfig, config_to_json(V1_MINI))
    assert VARIANTS["v1-mini"] is V1_MINI and config_to_json(again) == config_to_json(V1_MINI)
    assert isinstance(again.detokenizer, StatesDetokenizerConfig)
    for config in (stage2_codebook.CONFIGS["v1-mini"], detokenizer.CONFIGS["v1-mini"]):
        assert config.tokenizer == V1_MINI.tokenizer
    assert detokenizer.CONFIGS["v1-mini"].detokenizer == V1_MINI.detokenizer
    assert stage3_pretrain.CONFIGS["v1-mini"].system == V1_MINI
    assert stage1_qformer.CONFIGS["mini"].tokenizer.qformer == V1_MINI.tokenizer.qformer
    grammar, rows = V1_MINI.grammar, V1_MINI.language.rows
    assert (grammar.codes, grammar.per_image) == (V1_MINI.tokenizer.codebook_size, V1_MINI.tokenizer.qformer.queries)
    assert (rows.codes, rows.code_width) == (grammar.codes, V1_MINI.tokenizer.code_width)
    assert V1_MINI.language.new_words == grammar.codes + 2
    stage2_codebook.check_bank_target(stage2_codebook.CONFIGS["v1-mini"])


def test_without_weights_it_says_how_they_are_made() -> None:
    try:
        embedded("seed-v1-mini")
    except RebusError:
        with pytest.raises(RebusError, match=r"made by runs/seed_v1_mini\.sh"):
            load("seed:v1-mini")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="reads 64 states of width 192, but this tokenizer's head is 'mlp'"):
        mini_detokenizer(SYSTEM.detokenizer, SeedTokenizer(FIRST))
    with pytest.raises(RebusError, match="64 patch features of width 192, .* gives 7 of"):
        stage2_codebook.stage(replace(SECOND, tokenizer=replace(TOKENIZER, reverse_queries=7)), tmp_path)
    with pytest.raises(RebusError, match="no --data was named"):
        stage2_codebook.stage(replace(SECOND, target="text"), tmp_path)
    with pytest.raises(RebusError, match="--data names pairs"):
        stage2_codebook.stage(SECOND, tmp_path, tmp_path)
