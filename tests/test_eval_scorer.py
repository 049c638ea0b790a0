"""EfficientNet-Lite against numbers of the published implementation, and the rule that nothing learns from the scorer."""

from __future__ import annotations

import math

import PIL.Image
import pytest
import torch
from tests.house import MODULES, NAMES

from rebus.errors import RebusError
from rebus.evals.scorer import Scorer, load_scorer
from rebus.nn.efficientnet import LITE0, LITE2, EfficientNet, load_published, published_weights
from rebus.packages import PACKAGES, user_cache


def published_names(config):
    """Names and shapes of a published file, from our network and the table that reads it."""
    with torch.device("meta"):
        ours = EfficientNet(config).state_dict()
    theirs = {}
    for name, tensor in ours.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            inner = [n for n in ours if n.startswith(f"blocks.{parts[1]}.layers.") and n.endswith(".weight")]
            kinds = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            kinds = kinds if len(inner) == 4 else ["_expand_conv", "_bn0", *kinds]
            places = sorted({int(n.split(".")[3]) for n in inner})
            theirs[f"_blocks.{parts[1]}.{kinds[places.index(int(parts[3]))]}.{parts[4]}"] = tensor.shape
        else:
            place = f"{parts[0]}.{parts[1]}"
            word = {"stem.0": "_conv_stem", "stem.1": "_bn0", "head.0": "_conv_head", "head.1": "_bn1"}.get(
                place, "_fc"
            )
            theirs[f"{word}.{parts[-1]}"] = tensor.shape
    return theirs


def waves(config):
    """Weights that anyone can compute again: a sine over the numbers of each tensor, scaled by its fan-in."""
    tensors = {}
    for k, (name, shape) in enumerate(sorted(published_names(config).items())):
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1)
            continue
        wave = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + k).reshape(shape)
        if len(shape) > 1:
            wave = wave * (3 / math.prod(shape[1:])) ** 0.5
        elif name.endswith("weight") or name.endswith("running_var"):
            wave = 1 + 0.1 * wave
        tensors[name] = wave.float()
    return tensors


def picture(size):
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([torch.sin(9 * x * y + x), torch.cos(7 * y - 3 * x), x * y])[None]


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize(("config", "parameters"), [(LITE0, 4_652_008), (LITE2, 6_092_072)])
def test_sizes_are_the_published_ones(config, parameters):
    with torch.device("meta"):
        network = EfficientNet(config)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("size", "scores"),
    [
        (64, (-3.582801, 2.962707, -2.938660, 2.011907, 3.407207, -2.236698)),
        (96, (-3.581475, 2.961439, -2.937962, 2.012060, 3.406017, -2.236159)),
    ],
)
def test_same_numbers_as_the_published_implementation(size, scores):
    """The published PyTorch package (0.1.0) gave these first four and last two class scores for the same weights."""
    found = load_published(LITE0, waves(LITE0))(picture(size))[0]
    torch.testing.assert_close(found[[0, 1, 2, 3, -2, -1]], torch.tensor(scores), rtol=1e-4, atol=1e-4)


def test_every_tensor_is_used_and_every_parameter_filled():
    tensors = waves(LITE0)
    assert len(published_weights(tensors)) == len(tensors) == len(EfficientNet(LITE0).state_dict())
    with pytest.raises(RebusError, match="Missing key"):
        load_published(LITE0, {k: v for k, v in tensors.items() if k != "_fc.bias"})
    with pytest.raises(RebusError, match="no tensor of"):
        load_published(LITE0, {**tensors, "_blocks.0._se_reduce.weight": torch.zeros(1)})
    with pytest.raises(RebusError, match="width 1.1"):
        load_published(LITE2, tensors)


def test_published_lite2_weights():
    """The scores of the published package for its own Lite2 weights and this wave, where these have been fetched."""
    package = PACKAGES["efficientnet-lite2"]
    if not (user_cache() / "packages" / f"efficientnet-lite2-{package.version}-{package.sha256[:8]}").is_dir():
        pytest.skip("the scorer's weights have not been fetched")
    network = load_scorer(user_cache()).network
    best = network(picture(260))[0].topk(3)
    assert best.indices.tolist() == [714, 641, 723]
    torch.testing.assert_close(best.values, torch.tensor([7.6535, 7.1489, 6.3786]), rtol=1e-3, atol=1e-3)


def test_scorer_gives_unit_vectors_and_the_same_for_the_same_picture():
    scorer = Scorer(load_published(LITE0, waves(LITE0)), size=32, batch=2)
    red, blue = (PIL.Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    x_IC = scorer([red, blue, red])
    assert x_IC.shape == (3, 80 + 112 + 192 + 320 + 1280)
    torch.testing.assert_close(x_IC.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(x_IC[0], x_IC[2])
    assert not torch.equal(x_IC[0], x_IC[1])
    assert scorer([]).shape == (0, scorer.width) == (0, x_IC.shape[1])


# ------------------------------------------------------------------------------------------------ nothing learns from it


IMPORTS = {
    module.name: {t for i, _, _ in module.imports() for t in (i, i.rpartition(".")[0]) if t in NAMES}
    for module in MODULES
}


def reached(start: str) -> set[str]:
    """All modules that importing one may import, then or later."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += IMPORTS[name]
    return seen


def test_only_evals_import_the_scorer():
    scorer = {"rebus.evals.scorer"}
    assert {name for name, imported in IMPORTS.items() if imported & scorer} <= {
        m.name for m in MODULES if m.part == "evals"
    }
    taught = [m.name for m in MODULES if m.part not in ("evals", "apps", "studies") and reached(m.name) & scorer]
    assert not taught, f"these can reach the scorer, which nothing that is trained may: {taught}"
    assert scorer <= reached("rebus.evals.standard")  # the walk does find it


def test_only_the_scorer_names_its_weights():
    users = {m.name for m in MODULES if "LITE2" in m.text or "efficientnet-lite2" in m.text}
    assert users == {"rebus.nn.efficientnet", "rebus.packages", "rebus.evals.scorer"}
