"""Drawings are judged by how well the model itself recognises in them what was asked for."""

import pytest
import torch

import tiny
from rebus.document import Document, Image, Message, assistant, user
from rebus.errors import RebusError
from rebus.lm import log_likelihoods
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import ReadBack, reply
from rebus.visual import Codes, ImageSampling, Progress

WISH = Document((user("Draw a small red house."),))
SETTINGS = Sampling(max_new_tokens=80, temperature=1.5, best_of=3, image=ImageSampling(steps=1))


def codes(system, seed):
    size = system.tokenizer.config.codebook_size
    ids = torch.randint(size, (system.tokenizer.config.qformer.queries,), generator=tiny.generator(seed))
    return Image(generated=Codes(ids, system.tokenizer.source))


def test_the_score_is_the_likelihood_of_the_request_given_the_codes():
    system = tiny.system("seed")
    scorer = ReadBack(system, "What?")
    for seed in (1, 2):
        image = codes(system, seed)
        asked = Document((user(Image(understood=image.generated), "What?"), assistant("Draw a small red house.")))
        with torch.no_grad():
            expected = log_likelihoods(system.lm, collate([system.grammar.serialize(asked, loss="reply")]))
        assert scorer(WISH, Message("assistant", (image,))) == pytest.approx(float(expected[0]), abs=1e-4)


def test_a_reply_without_a_picture_is_the_worst_and_a_wish_without_words_an_error():
    scorer = ReadBack(tiny.system("seed"))
    assert scorer(WISH, Message("assistant", ("words",))) == float("-inf")
    with pytest.raises(RebusError, match="judged by the words that asked for it"):
        scorer(Document((user(tiny.picture()),)), Message("assistant", (tiny.picture(),)))


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_the_best_of_several_is_the_one_best_recognised(paper):
    system = tiny.system(paper)
    best = [p for p in reply(system, WISH, modality="image", sampling=SETTINGS, generator=tiny.generator(3))]
    seen = []
    scorer = ReadBack(system)

    def watched(document, message):
        seen.append((scorer(document, message), message))
        return seen[-1][0]

    system.generate([WISH], modality="image", sampling=SETTINGS, generators=[tiny.generator(3)], scorer=watched)
    assert len({score for score, _ in seen}) > 1
    winner = max(seen, key=lambda pair: pair[0])[1]
    assert [i.pixels.tobytes() for i in winner.images] == [p.pixels.tobytes() for p in best if isinstance(p, Image)]


def test_only_the_best_is_drawn_where_codes_are_judged(monkeypatch):
    system, drawn = tiny.system("seed"), []
    decode = system.detokenizer.decode
    monkeypatch.setattr(system.detokenizer, "decode", lambda tokens, **told: drawn.append(len(tokens)) or decode(tokens, **told))  # fmt: skip

    def later(document, message):
        return ReadBack(system)(document, message)

    said = {}
    for scorer in (ReadBack(system), later):
        dice = [tiny.generator(3), tiny.generator(4)]
        said[scorer] = system.generate(
            [WISH, WISH], modality="image", sampling=SETTINGS, generators=dice, scorer=scorer
        )
    assert drawn == [2, 6]
    early, late = ([m.images[0].generated.ids_N.tolist() for m in messages] for messages in said.values())
    assert early == late
    assert not ReadBack(tiny.system("seed_x")).before_drawing


def test_one_reply_is_streamed_as_it_comes():
    one = Sampling(max_new_tokens=80, image=ImageSampling(steps=2))
    pieces = list(reply(tiny.system("seed"), WISH, modality="image", sampling=one, generator=tiny.generator(1)))
    assert any(isinstance(piece, Progress) for piece in pieces) and isinstance(pieces[-1], Image)
