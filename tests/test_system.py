"""Systems: what is encoded for which role, what a detokenizer is handed, and loading by name."""

from __future__ import annotations

from dataclasses import fields

import PIL.Image
import pytest
import torch
from tests import tiny
from tests.toy import GRAMMAR, LM

import rebus
from rebus.checkpoint import SavedSystem, save_system
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.papers.seed.variants import TINY
from rebus.papers.seed_x.speciality import Sourceless
from rebus.sampling import Sampling
from rebus.system import Dice, System, encode, known_systems, load
from rebus.visual import Codes, Features, ImageSampling, Progress


class Noting:
    """A visual tokenizer and detokenizer that note what they are asked."""

    settings = frozenset({"steps"})

    def __init__(self):
        self.encoded, self.decoded = [], []

    def encode(self, images, purposes, *, generators=None):
        self.encoded.append((len(images), purposes, None if generators is None else len(generators)))
        (purpose,) = purposes
        name = "understood" if purpose == "understanding" else "generated"
        return [image.with_tokens(**{name: Features(torch.zeros(1, 1, 1), purpose)}) for image in images]

    def decode(self, tokens, *, sources, negatives, generators, sampling):
        self.decoded.append((list(sources), list(negatives), [g.initial_seed() for g in generators], sampling))
        yield Progress(1, 1)
        for token in tokens:
            yield PIL.Image.new("RGB", (2, 2), tuple(int(x) % 256 for x in token.x_WNC.flatten()[:3]))


def codes() -> Codes:
    return Codes(torch.tensor([1]), "seed")


def test_each_role_gets_what_it_asks():
    past = Image(tiny.picture().pixels, generated=codes())
    document = Document((user(tiny.picture(), "a", tiny.picture()), assistant(past, tiny.picture()), user("b")))
    tokenizer = Noting()
    (chat,) = encode(tokenizer, [document], replies="understanding")
    assert tokenizer.encoded == [(3, {"understanding"}, None)]
    assert [image.understood is not None for image in chat.images] == [True, True, False, True]
    assert chat.images[2] is past  # codes that were written are read as they are
    tokenizer = Noting()
    generators = [tiny.generator(i) for i in range(4)]
    (learned,) = encode(tokenizer, [Document(document.messages[:1]).add(assistant(tiny.picture()))], replies="generation",
                        generators=generators[:3])  # fmt: skip
    assert tokenizer.encoded == [(2, {"understanding"}, 2), (1, {"generation"}, 1)]
    assert learned.images[2].generated is not None and learned.messages[0].content[1] == "a"
    assert encode(tokenizer, [Document((user("no image"),))], replies="generation")[0].images == []


def test_a_detokenizer_gets_the_last_picture_and_a_generator_for_each_image():
    drawer = Noting()
    system = System(GRAMMAR, LM, None, drawer)
    first, last = tiny.picture(size=3), tiny.picture(size=5)
    document = Document((user("a", first), assistant("b", last, Image(generated=codes()))))
    sampling = Sampling(image=ImageSampling(steps=3))
    parts = list(system.stream(document, modality="image", sampling=sampling))
    assert [type(part) for part in parts] == [Progress, Image]
    (sources, negatives, seeds, asked) = drawer.decoded[0]
    assert sources == [last.pixels] and negatives == [None] and asked.steps == 3
    list(system.stream(document, modality="image", source=first.pixels))
    assert drawer.decoded[1][0] == [first.pixels]
    system.generate([document, Document((user("c"),))], modality="image")
    assert drawer.decoded[2][0] == [last.pixels, None]  # drawn together
    assert drawer.decoded[2][2] == [seeds[0], seeds[0]]  # without generators, all begin with the same seed
    replies = list(System(GRAMMAR, LM).stream(document, modality="image"))
    assert len(replies) == 1 and replies[0].pixels is None and replies[0].generated is not None


GIVEN = {"steps": 1, "guidance": 2.0, "image_guidance": 2.0, "noise_level": 3, "size": (16, 16), "codes": 2}
"""A value for each of `ImageSampling`'s fields."""


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_a_setting_that_says_nothing_to_a_detokenizer_is_an_error(paper: str) -> None:
    assert set(GIVEN) == {field.name for field in fields(ImageSampling)}
    system = tiny.system(paper)
    settings = system.detokenizer.settings
    assert {"steps", "guidance"} <= settings < set(GIVEN)
    (reply,) = system.generate([Document((user("Draw."),))], modality="image", sampling=Sampling(max_new_tokens=60))
    given = ImageSampling(**GIVEN)
    assert given.unused(settings) == [name for name in GIVEN if name not in settings]
    assert given.only(settings) == ImageSampling(**{name: GIVEN[name] for name in GIVEN if name in settings})
    for name in GIVEN.keys() - settings:
        with pytest.raises(RebusError, match=f"but {name} was given, which says nothing to its image decoder"):
            list(system.draw(reply.images, [None], [tiny.generator(0)], ImageSampling(**{name: GIVEN[name]})))
        # where a reply may hold images it is refused before any word was written, else it does not matter
        asked = Sampling(image=ImageSampling(**{name: GIVEN[name]}), max_new_tokens=3)
        for modality in ("any", "image"):
            with pytest.raises(RebusError, match=f"but {name} was given"):
                next(system.stream(Document((user("Draw."),)), modality=modality, sampling=asked))
            with pytest.raises(RebusError, match=f"but {name} was given"):
                system.generate([Document((user("Draw."),))], modality=modality, sampling=asked)
        system.generate([Document((user("Say."),))], modality="text", sampling=asked)
    drawing = list(system.draw(reply.images, [None], [tiny.generator(0)], ImageSampling(steps=3, guidance=2.0)))
    assert sum(isinstance(piece, Progress) for piece in drawing) == 3


def test_a_detokenizer_that_sees_no_source_is_not_told_how_to_keep_one() -> None:
    system = tiny.system("seed_x")
    assert ("image_guidance" in system.detokenizer.settings) == system.edits
    assert Sourceless(system.detokenizer).settings == system.detokenizer.settings - {"image_guidance"}


def test_streams_of_random_numbers_are_independent():
    one, two = Dice(tiny.generator(0)), Dice(tiny.generator(0))
    torch.rand(5, generator=one.words)
    assert one.image().initial_seed() == two.image().initial_seed() != two.image().initial_seed()
    split = Dice(tiny.generator(0)).split(3)
    assert len({dice.words.initial_seed() for dice in split}) == 3
    assert Dice(None).words.initial_seed() == Dice(tiny.generator(0)).words.initial_seed()


# ------------------------------------------------------------------------------------------------ loading


def test_known_systems_lists_papers_and_variants():
    assert "tiny" in known_systems()["seed"] and "mini" in known_systems()["seed"]
    assert rebus.load is load and rebus.System is System
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rebus.nothing  # noqa: B018


def test_weights_of_another_variant_are_refused(tmp_path):
    saved = SavedSystem("seed:mini", {})
    save_system(tmp_path / "mini", saved, {"lm": {"x": torch.zeros(1)}})
    with pytest.raises(RebusError, match="are those of seed:mini, but seed:tiny was asked for. Load seed:mini"):
        load("seed:tiny", weights=tmp_path / "mini")
    with pytest.raises(RebusError, match="seed has no adapters. Load it without `adapter`"):
        load("seed:tiny", adapter=tmp_path)
    with pytest.raises(RebusError, match="papers here are"):
        load("")


def test_a_package_of_ones_own_is_named_with_its_dots(tmp_path, monkeypatch):
    package = tmp_path / "mylab" / "emu"
    package.mkdir(parents=True)
    (tmp_path / "mylab" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "from rebus.papers.seed import VARIANTS as SEED, build as build_seed\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n    loud: bool = False\n"
        "VARIANTS = {'big': Config(), 'small': Config()}\n"
        "def official(config):\n    return Config(loud=True)\n"
        "def build(config, weights, parts, device, dtype):\n"
        "    system = build_seed(SEED['tiny'], None, parts, device, dtype)\n"
        "    system.config = config\n"
        "    return system\n"
        "def adapt(system, folder):\n    system.adapter = folder\n    return system\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    one = load("mylab.emu", parts=("lm",))
    assert one.name == "mylab.emu:big" and not one.config.loud
    two = load("mylab.emu:small", parts=("lm",), official=True, adapter="somewhere")
    assert two.config.loud and str(two.adapter) == "somewhere"
    with pytest.raises(RebusError, match="no system 'mylab.nothing'"):
        load("mylab.nothing")
    (package / "__init__.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.delitem(__import__("sys").modules, "mylab.emu")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        load("mylab.emu")


def test_a_language_model_in_eight_bits():
    pytest.importorskip("torchao")
    system = load("seed:tiny", dtype=torch.int8, parts=("lm",))
    (message,) = system.generate([Document((user("hello"),))], modality="text", sampling=Sampling(max_new_tokens=8))
    assert message.text
    assert not any("lora" in name for name, _ in system.lm.named_parameters())
    assert TINY.language.lora_rank  # it had some
