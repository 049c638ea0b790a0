"""LaVIT's language side against numbers of the official code: what goes into the model, and guidance.

Dimension key: I images · N patches · L words · D width of the language model · V vocabulary
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from tests.parity.golden import Golden
from tests.parity.lavit_modules import SOURCE, detokenizer
from torch import Tensor, nn

from rebus.document import Document, Image, assistant, user
from rebus.generate import Decoder
from rebus.grammar import Allow
from rebus.lm import InterleavedLM
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.settings import ANSWER, CAPTION, DRAW
from rebus.papers.lavit.spelling import LavitGrammarConfig
from rebus.sampling import Sampling, log_scores
from rebus.sequence import collate
from rebus.visual import Codes, Patches

FIRST = LavitGrammarConfig().first_code


class Pieces:
    """A text tokenizer whose texts are ids, written out."""

    specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = 32000
    text_V = torch.arange(32000) > 2

    def encode(self, text: str) -> list[int]:
        return [int(piece) for piece in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def spelled(codes: Any, config: LavitGrammarConfig) -> list[list[int]]:
    """Images as a reply writes them."""
    grammar = LavitGrammar(Pieces(), replace(config, plain=replace(config.plain, end="")), SOURCE)
    images = [Image(generated=Codes(ids_N, SOURCE)) for ids_N in codes]
    return [grammar.serialize(Document((assistant(image),)), template="plain").ids for image in images]


class Given(nn.Module):
    """An input projector that gives vectors computed before."""

    def __init__(self, vectors: list[Tensor]) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, inputs: list[Patches]) -> Tensor:
        return torch.cat([self.vectors[int(image.x_NC[0, 0])] for image in inputs])


def check_llm_inputs(golden: Golden) -> None:
    sizes, lengths = golden.config, golden.input("lengths").tolist()
    patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    llama = {"model_type": "llama", "vocab_size": 48386, "hidden_size": sizes["llm_dim"], "num_hidden_layers": 1}
    llama |= {"intermediate_size": 8, "num_attention_heads": 2, "tie_word_embeddings": False}
    lm = InterleavedLM(
        TextModel(build_causal_lm(llama)), Given(list(golden.input("understanding_embeds_packed").split(lengths)))
    ).eval()
    with torch.no_grad():
        lm.llm.base.get_input_embeddings().weight[golden.input("embed_table_ids")] = golden.input("embed_table_rows")
    empty = LavitGrammarConfig().chat
    config = LavitGrammarConfig(
        codes=sizes["n_code"], patches=patches, fewest=1, most=patches, chat=empty, question=("", "")
    )
    grammar = LavitGrammar(Pieces(), config, SOURCE)
    images = [
        Image(understood=Patches(torch.full((patches, 1), float(i)), torch.arange(patches) < count, SOURCE))
        for i, count in enumerate(lengths)
    ]

    def texts(name: str) -> list[str]:
        return [" ".join(str(i) for i in row if i >= 0) for row in golden.input(f"{name}.prompt_ids").tolist()]

    def check(name: str, documents: list[Document], reply: Any, *, also: tuple[int, ...] = ()) -> None:
        """The vectors of each document, in order, are the rows that the official mask lets through."""
        mask_IL = golden.out(f"{name}.{'mask' if name == 'visual' else 'attention_mask'}").bool()
        want_ILD = golden.out(f"{name}.{'embeds' if name == 'visual' else 'inputs_embeds'}")
        for document, mask_L, want_LD in zip(documents, mask_IL, want_ILD, strict=True):
            sequence = grammar.serialize(document, reply=reply)
            sequence.ids += also
            sequence.target += [False] * len(also)
            got_LD = lm.embed(collate([sequence]))[0]
            torch.testing.assert_close(got_LD, want_LD[mask_L], atol=0, rtol=0)
        # what the official code pads with is the vector of </s>, which nobody looks at
        end_D = lm.llm.embed(torch.tensor([2]))[0]
        assert torch.equal(want_ILD[~mask_IL], end_D.expand_as(want_ILD[~mask_IL]))

    check("visual", [Document((user(image),)) for image in images], "text")
    check("caption", [Document((user(image),)) for image in images], "text")
    for name in ("prompted", "vqa"):
        documents = [Document((user(image, text),)) for image, text in zip(images, texts(name), strict=True)]
        check(name, documents, "text")

    begin = (grammar.special.begin_image,)
    check("t2i", [Document((user(text),)) for text in texts_of_wish(golden)], "image", also=begin)
    unmarked = LavitGrammar(Pieces(), replace(config, wish_marks=False), SOURCE)
    grammar, marked = unmarked, grammar
    check("mm", [prompt_of_codes(row) for row in golden.input("mm.prompt_ids").tolist()], "image", also=begin)

    check_sampled(golden, marked)
    check_suppressed(golden, LavitGrammar(Pieces(), LavitGrammarConfig(), SOURCE))


def texts_of_wish(golden: Golden) -> list[str]:
    """The file has no ids of these prompts: they are found by the vectors that the official code made of them."""
    rows, ids = golden.input("embed_table_rows"), golden.input("embed_table_ids")
    found = []
    for mask_L, x_LD in zip(golden.out("t2i.attention_mask"), golden.out("t2i.inputs_embeds"), strict=True):
        matches = (x_LD[mask_L.bool()][:, None] == rows[None]).all(-1)
        assert (matches.sum(1) == 1).all()
        words = [int(ids[row.nonzero()[0, 0]]) for row in matches]
        assert words[-1] == LavitGrammarConfig().begin_image
        found.append(" ".join(map(str, words[:-1])))
    return found


def prompt_of_codes(row: list[int]) -> Document:
    """Images as codes, then words, as the ids say."""
    row = [i for i in row if i >= 0]
    codes = [i - FIRST for i in row if i >= FIRST]
    parts: list[Any] = [Image(generated=Codes(torch.tensor(codes), SOURCE))] if codes else []
    words = " ".join(str(i) for i in row if i < FIRST)
    assert [FIRST + code for code in codes] + [int(word) for word in words.split()] == row
    return Document((user(*parts, *([words] if words else [])),))


def check_sampled(golden: Golden, grammar: LavitGrammar) -> None:
    """What was sampled, cleaned, and its way to the image decoder."""
    rows = golden.input("sampled_ids").tolist()
    codes = [grammar.codes(row) for row in rows]
    golden.check("sampled.code_ids_packed", torch.tensor(sum(codes, [])))
    golden.check("sampled.lengths", torch.tensor([len(ids) for ids in codes]))
    for row, ids in zip(rows, codes, strict=True):
        if grammar.special.end_image in row:  # others are cut off, which this grammar never writes
            (image,) = grammar.read(row)
            assert image.generated.ids_N.tolist() == ids
    decoder_state = golden.part("state.decoder")
    made = detokenizer(golden, decoder_state, golden.state["quantize.embedding.weight"])
    told = made.told(made.features([Codes(torch.tensor(ids), SOURCE) for ids in codes]), (64, 64))
    golden.check("sampled.prompt_embeds", told.tokens_ISC)
    golden.check("sampled.pooled_prompt_embeds", told.pooled_IP)


def check_suppressed(golden: Golden, grammar: LavitGrammar) -> None:
    """Nothing that the official code suppresses may be written, and what it allows may, but for special words."""
    with safe_open(golden.path, "pt") as file:
        asked = json.loads(file.metadata()["generate_kwargs"])
    begin = grammar.special.begin_image
    for kind, reply, specials in (("caption", [], {0, 1}), ("t2i", [begin] + [FIRST] * 20, {0, 1, 2, begin})):
        action = grammar.next(reply, "text" if kind == "caption" else "any", 500)
        assert isinstance(action, Allow)
        first, last, count = asked[kind]["suppress_tokens"]
        assert last - first + 1 == count
        free_V = torch.ones(grammar.vocabulary, dtype=torch.bool)
        free_V[first : last + 1] = False
        free_V[list(specials)] = False
        assert torch.equal(action.mask_V, free_V)
    for kind, ours in (("caption", CAPTION), ("vqa", ANSWER), ("t2i", DRAW)):
        theirs = asked[kind]
        assert (ours.beams, ours.length_penalty) == (theirs["num_beams"], theirs["length_penalty"])
        assert ours.is_greedy != theirs["do_sample"] and (ours.is_greedy or ours.temperature == theirs["temperature"])
        if kind != "t2i":  # there the words that count are the image's own
            assert (ours.min_new_tokens, ours.max_new_tokens) == (theirs["min_new_tokens"], theirs["max_new_tokens"])
    assert DRAW.top_k == asked["t2i"]["top_k"] and DRAW.max_new_tokens == asked["t2i"]["max_new_tokens"] + 2
    assert asked["t2i"]["eos_token_id"] == grammar.special.end_image
    assert asked["t2i"]["min_new_tokens"] == grammar.config.fewest
    assert asked["t2i"]["max_new_tokens"] == grammar.config.most


def check_guidance(golden: Golden) -> None:
    scale = float(golden.input("scale"))
    for step in (1, 2):
        given, free = golden.input(f"cond_logits_step{step}"), golden.input(f"uncond_logits_step{step}")
        golden.check(f"scores_step{step}", log_scores(given, free, scale), atol=2e-5)
    # what the guidance stream is fed: the opening mark alone, then each word that is chosen
    llama = {
        "model_type": "llama",
        "vocab_size": 48386,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
    }
    lm = InterleavedLM(TextModel(build_causal_lm({**llama, "num_attention_heads": 2}))).eval()
    grammar = LavitGrammar(Pieces(), LavitGrammarConfig(), SOURCE)
    prompt = grammar.serialize(Document((user("7 8 9"),)), reply="image")
    fed: list[list[int]] = []
    for word in golden.out("uncond_input_step2")[:, 0].tolist():
        loop = Decoder(lm, grammar, rows=2, capacity=64)
        reply = loop.add(prompt, modality="image", sampling=Sampling(max_new_tokens=30, guidance=scale))
        branch = reply.branches[0]
        fed.append(branch.guide.unread)
        branch.guide.unread = []  # as if it had been read
        loop._take(branch, word)
        fed.append(branch.guide.unread)
    golden.check("uncond_input_step1", torch.tensor(fed[::2]))
    golden.check("uncond_input_step2", torch.tensor(fed[1::2]))
    golden.check("uncond_mask_step2", torch.ones(len(fed) // 2, len(fed[0] + fed[1]), dtype=torch.int64))
