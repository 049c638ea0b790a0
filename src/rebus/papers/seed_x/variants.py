"""The sizes that SEED-X comes in: the three releases, the mini, and a tiny one for tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rebus.diffusion.denoiser import TransformerConfig
from rebus.diffusion.draft import GridDraftConfig
from rebus.diffusion.vae import VaeConfig
from rebus.mini.llm import BASE_LLM
from rebus.mini.vision import MINI_VIT
from rebus.nn.new_rows import RowInit
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.vit import ViTConfig
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.seed_x import views
from rebus.papers.seed_x.adapter import AdapterConfig
from rebus.papers.seed_x.detokenizer import EDITOR, SeedXDetokenizerConfig
from rebus.papers.seed_x.language import LanguageConfig, LoraConfig, MergedLanguageConfig, ProjectorsConfig
from rebus.papers.seed_x.published_decoder import SECOND_STAGE, SdxlDetokenizerConfig
from rebus.papers.seed_x.spelling import EDIT, QUESTION, SeedXGrammarConfig, mini, new_words
from rebus.papers.seed_x.tokenizer import SeedXTokenizerConfig
from rebus.papers.seed_x.vision import PatchVisionConfig, VisionConfig

HALF = (0.5, 0.5, 0.5)
SMOLLM2_WORDS = 49_152


@dataclass(frozen=True)
class SeedXConfig:
    """A whole SEED-X: the four parts."""

    tokenizer: SeedXTokenizerConfig = field(default_factory=SeedXTokenizerConfig)
    """How it sees."""
    projectors: ProjectorsConfig = field(default_factory=ProjectorsConfig)
    """The ways into the language model and out of it."""
    grammar: SeedXGrammarConfig = field(default_factory=SeedXGrammarConfig)
    """How it spells."""
    language: LanguageConfig | MergedLanguageConfig = field(default_factory=MergedLanguageConfig)
    """What continues the sequence."""
    detokenizer: SdxlDetokenizerConfig | SeedXDetokenizerConfig = field(default_factory=SdxlDetokenizerConfig)
    """How it draws."""
    weights: str | None = None
    """The embedded weights that are loaded where none are named; none: random."""
    base: str | None = None
    """The shared weights that these are laid over: vision encoder and latent codec of the mini family."""


INSTRUCT_17B = SeedXConfig()
"""SEED-X-I, tuned to chat, as released."""
BASE_17B = replace(INSTRUCT_17B, grammar=SeedXGrammarConfig(chat=QUESTION))
"""SEED-X as pre-trained and released."""
EDIT_17B = replace(
    INSTRUCT_17B,
    tokenizer=SeedXTokenizerConfig(grids=views.EDIT),
    grammar=SeedXGrammarConfig(chat=EDIT),
    detokenizer=SdxlDetokenizerConfig(diffusion=SECOND_STAGE),
)
"""SEED-X-Edit, tuned to editing, as released."""

LEARNING_17B = replace(BASE_17B, language=LanguageConfig(base="meta-llama/Llama-2-13b-chat-hf", lora=LoraConfig()))
"""SEED-X as its pre-training begins: a language model with rows for new words and adapters."""

MINI = SeedXConfig(
    tokenizer=SeedXTokenizerConfig(vision=PatchVisionConfig(MINI_VIT), alone="once", mean=HALF, std=HALF),
    projectors=ProjectorsConfig(
        into=ResamplerConfig(grid=4, width=576, heads=9, source_width=192),
        out_of=ResamplerConfig(grid=4, width=192, heads=4, source_width=576),
        keeps=True,
        says=WordDrawingsConfig(),
        words=WordReadingsConfig(),
    ),
    grammar=mini(SMOLLM2_WORDS, 16, vectors=64, context=2048),
    language=LanguageConfig(base=BASE_LLM, new_words=new_words(16), lora=LoraConfig(rank=14, alpha=28, dropout=0.0)),
    detokenizer=EDITOR,
    weights="seed_x-mini",
    base="mini",
)

TINY = SeedXConfig(
    tokenizer=SeedXTokenizerConfig(
        vision=VisionConfig(
            trunk=ViTConfig(
                image_size=32,
                patch=8,
                width=32,
                depth=1,
                heads=2,
                mlp_hidden=64,
                class_token=False,
                patch_bias=False,
                norm_before=True,
                attention_bias="qkv",
                position_grid=2,
            ),
            pool=ResamplerConfig(grid=4, width=24, heads=2, source_width=32, eps=1e-6),
        ),
        grids=((1, 1), (1, 2), (2, 1), (2, 2)),
        mean=HALF,
        std=HALF,
    ),
    projectors=ProjectorsConfig(
        into=ResamplerConfig(grid=2, width=32, heads=2, source_width=24),
        out_of=ResamplerConfig(grid=2, width=24, heads=2, source_width=32),
    ),
    grammar=mini(262, 4, vectors=16, context=2048, locations=16),
    language=LanguageConfig(
        base={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        new_words=new_words(4, 16),
        # rows that are all the same would say nothing, and nothing teaches these
        rows=RowInit(),
        output_rows=RowInit(),
    ),
    detokenizer=SeedXDetokenizerConfig(
        adapter=AdapterConfig(
            in_width=24, latents=4, width=16, depth=1, heads=2, head_width=8, mlp_ratio=2, widths=(8, 8), pooled=16
        ),
        vae=VaeConfig(unshuffle=4, channels=(32,)),
        denoiser=TransformerConfig(
            extra_channels=8, side=8, heads=2, head_width=16, depth=1, token_width=16, vector_width=32
        ),
        draft=GridDraftConfig(token_width=8, grid=4, widths=(16, 16)),
        steps=2,
    ),
)

VARIANTS = {"mini": MINI, "17b-i": INSTRUCT_17B, "17b": BASE_17B, "17b-edit": EDIT_17B, "tiny": TINY}
