"""`rebus plan`, `rebus doctor` and `rebus export --layout hub`."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from tests import tiny

from rebus.apps import doctor, plan
from rebus.apps.cli import main
from rebus.checkpoint import read_tensors
from rebus.packages import embedded
from rebus.system import known_systems
from rebus.system import plan as plan_of

EVERY = [f"{paper}:{variant}" for paper, variants in known_systems().items() for variant in variants]


@pytest.mark.parametrize(
    ("name", "part", "parameters"),
    [
        # counts of the published files: LaVIT's LLaMA and its second merger with the linear layer; SEED-X's LLaMA and
        # agent, and its vision encoder
        ("lavit:v2", "lm", 6_872_649_728 + 398_291_456 + 5_771_264),
        ("seed_x:17b-i", "tokenizer", 1_935_610_624),
    ],
)
def test_counts_are_those_of_the_published_files(name, part, parameters):
    counted = {size.name: size.parameters for size in plan_of(name).parts}[part]
    assert counted == pytest.approx(parameters, rel=2e-4)


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_counts_are_those_of_the_built_system(paper):
    system, needed = tiny.system(paper), plan_of(f"{paper}:tiny")
    sizes = {part.name: part for part in needed.parts}
    assert sizes["tokenizer"].parameters == sum(x.numel() for x in system.tokenizer.state_dict().values())
    own = {name: x for name, x in system.lm.state_dict().items() if not name.endswith("lm_head.weight")}
    assert sizes["lm"].parameters == sum(x.numel() for x in own.values())
    seen = {x.data_ptr() for x in system.tokenizer.state_dict().values()}
    drawn = {x.data_ptr(): x.numel() for x in system.detokenizer.state_dict().values() if x.data_ptr() not in seen}
    assert sizes["detokenizer"].parameters == sum(drawn.values())
    assert sizes["lm"].memory("float32") == 4 * sizes["lm"].parameters > sizes["lm"].memory("int8")


def test_the_embedded_weights_are_of_the_planned_size():
    rows = read_tensors(embedded("seed-mini") / "lm.safetensors")
    new = sum(rows.meta[name].numel() for name in rows if name.startswith(("rows.", "codes.")))
    lm = next(part for part in plan_of("seed:mini").parts if part.name == "lm")
    assert lm.parameters - new == 134_515_008  # SmolLM2-135M
    assert sum(part.parameters for part in plan_of("seed:mini").parts) == 159_626_913


@pytest.mark.parametrize("name", EVERY)
def test_every_model_has_a_plan(name, capsys):
    assert main(["plan", name]) == 0
    said = capsys.readouterr().out
    assert "bfloat16, GB" in said and "licence:" in said


def test_what_is_published_says_its_licence_and_size(capsys):
    assert main(["plan", "seed:v2-14b"]) == 0
    said = capsys.readouterr().out
    assert "language model: 26.20 GB" in said and "LLaMA 2" in said and "unclip" in said
    assert main(["plan", "seed:huge"]) == 2
    assert "no system 'seed:huge'" in capsys.readouterr().err


def test_the_base_of_a_mini_is_a_download_until_it_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("REBUS_CACHE", str(tmp_path))
    base = plan.sources(plan_of("seed:mini"))[1]
    assert base.size == plan.BASE_SIZE and "already here" not in base.what and base.licence == "Apache-2.0"
    (tmp_path / plan.BASE_LLM).mkdir()
    assert plan.sources(plan_of("seed:mini"))[1].size == 0


def test_doctor_finds_nothing_wrong_here(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"{metadata.version('torch')}" in said and "Nothing that everything needs is missing." in said
    assert "seed:mini" in said and "extras" in said


def test_doctor_names_what_is_missing_and_what_brings_it(monkeypatch, capsys):
    lines = [
        "torch>=99",
        "nowhere>=1 ; extra == 'demo'",
        "pillow>=1 ; extra == 'demo'",
        "rebus-lm[demo] ; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert [(x.name, x.found, x.fits) for x in doctor.requirements("dev")][0] == ("nowhere", "", False)
    assert main(["doctor"]) == 2
    said = capsys.readouterr()
    words = " ".join(said.out.split())
    assert "nowhere" in words and "pip install" in words and "[demo]" in words
    assert "torch" in said.err and "needs >=99" in said.err


def test_export_to_one_folder(tmp_path: Path, capsys):
    tiny.system("lavit").save_pretrained(tmp_path / "s")
    assert (
        main(["export", str(tmp_path / "s"), "-o", str(tmp_path / "t"), "--layout", "hub", "--dtype", "float16"]) == 0
    )
    assert "written to" in capsys.readouterr().out
    stored = read_tensors(tmp_path / "t/lm.safetensors")
    assert {str(x.dtype) for x in stored.meta.values() if x.is_floating_point()} == {"torch.float16"}
    assert main(["export", "seed:v2-8b", "-o", str(tmp_path / "u"), "--layout", "hub"]) == 2
    assert "rebus convert" in capsys.readouterr().err
    assert main(["export", "seed:mini", "-o", str(tmp_path / "u")]) == 2
    assert "--layout hub" in capsys.readouterr().err
