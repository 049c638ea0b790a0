"""The launch files of `runs/cluster`: every command that they would start has options that its stage takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rebus.apps import training

ROOT = Path(__file__).parents[1]
ARGUMENTS = {
    "seed": ("FILES", "PAIRS", "SETS"),
    "lavit": ("FILES", "PAIRS", "SETS"),
    "seed_x": ("FILES", "PICTURES", "EDITS", "SETS"),
}


@pytest.mark.parametrize("paper", ARGUMENTS)
@pytest.mark.parametrize(("gpus", "accumulate"), [(8, {"seed": 32, "lavit": 8, "seed_x": 12}), (96, None)])
def test_papers_are_trained_with_options_that_their_stages_take(
    paper: str, gpus: int, accumulate: dict[str, int] | None, tmp_path: Path
) -> None:
    environment = {"LAUNCH": "echo launch", "REBUS": "true", "GPUS": str(gpus), "PATH": "/bin:/usr/bin"}
    script = [str(ROOT / "runs" / "cluster" / f"{paper}.sh"), *ARGUMENTS[paper], str(tmp_path)]
    said = subprocess.run(["bash", *script], env=environment, capture_output=True, text=True, check=True).stdout
    runs = [training.parse(*_split(line)) for line in said.splitlines() if line.startswith("launch ")]
    stages = {name for name in training.stages() if name.startswith(f"{paper}.")}
    of_the_mini = {
        f"{paper}.{stage}" for stage in ("detokenizer", "naming", "drawing", "keeping")
    }  # there is no paper-sized config
    assert {run.name for run in runs} == stages - of_the_mini
    language = [run for run in runs if run.options.parallel == "fsdp" and hasattr(run.options.config, "source_batch")]
    assert language and all(run.options.recompute for run in runs)
    if accumulate:
        assert language[0].options.config.optim.accumulate == accumulate[paper]
    else:
        assert all(run.options.config.optim.accumulate <= 3 for run in language)


def _split(line: str) -> tuple[str, list[str]]:
    _, stage, *words = line.split()
    return stage, words


def test_launchers_start_torchrun_with_the_arguments_of_a_stage(tmp_path: Path) -> None:
    named = {"PYTHON": "echo", "PATH": "/bin:/usr/bin", "HEAD": "node-0:29400", "NODES": "4", "PROCESSES": "2"}
    for launcher, told in (("one_node", "--standalone"), ("several_nodes", "--rdzv-endpoint node-0:29400")):
        script = ["bash", str(ROOT / "runs" / "cluster" / f"{launcher}.sh"), "mini.vae", "--steps", "5"]
        said = subprocess.run(script, env=named, capture_output=True, text=True, check=True).stdout
        assert said.startswith("-m torch.distributed.run") and told in said and "--nproc-per-node 2" in said
        assert said.rstrip().endswith("-m rebus.apps.cli train mini.vae --steps 5")


def test_slurm_hands_its_machines_on(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node-7\necho node-8\n")
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$HEAD $NODES $RUN $GPUS: $*"\n')
    for tool in ("scontrol", "srun"):
        (tmp_path / tool).chmod(0o755)
    slurm = {
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_JOB_ID": "40017",
        "SLURM_GPUS_ON_NODE": "4",
    }
    environment = slurm | {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_SUBMIT_DIR": str(ROOT), "REBUS": "true"}

    def submitted(*words: str) -> list[str]:
        script = ["bash", str(ROOT / "runs" / "cluster" / "slurm.sh"), *words]
        return subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    prefix = "node-7:20017 2 40017 8: --kill-on-bad-exit=1 runs/cluster/several_nodes.sh "
    assert submitted("mini.vae", "--steps", "5") == [f"{prefix}mini.vae --steps 5"]
    lines = submitted("runs/cluster/seed.sh", "FILES", "PAIRS", "SETS", str(tmp_path / "work"))
    assert len(lines) == 5 and all(line.startswith(f"{prefix}seed.stage") for line in lines)
