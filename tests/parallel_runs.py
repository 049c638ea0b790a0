"""Small trainings that run on one process or several, and the starting of these: forked from one that has all imported."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests import tiny
from torch import Tensor, nn

from rebus.document import Document, assistant, user
from rebus.errors import RebusError
from rebus.train import Gate, Layout, Losses, Margin, Optim, Stage, Trainable, fit, log, parallel
from rebus.train.gates import Gates

MODULES = ["tests.parallel_runs", "rebus.apps.training", "rebus.papers.seed.stages.stage3_pretrain", "tests.seed_pairs"]


# ------------------------------------------------------------------------------------------------ processes


def run(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns on each of `world` processes that train together; an exception as itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=_one, args=(rank, world, folder, work, arguments)) for rank in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(240)
            if process.is_alive():
                process.kill()
        files = [Path(folder, f"{rank}.pt") for rank in range(world)]
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _one(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    log.draw_curves = lambda folder: folder  # which takes longer than all the rest
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    dist.barrier()  # one that refuses at once would be gone while the others still look for it
    try:
        result = work(*arguments)
    except RebusError as error:
        result = error
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    torch.save(result, f"{folder}/{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------ documents


class Repeated:
    """Documents without end: eight, again and again. The first two hold no image, which are one process's half of the
    first batch."""

    def __init__(self) -> None:
        red, blue, green = (tiny.picture(colour) for colour in ((200, 20, 20), (9, 9, 99), (0, 160, 0)))
        self.held = [
            Document((user("Hello."), assistant("And a rather longer answer."))),
            Document((user("Two."), assistant("2"))),
            Document((user(red, "What is this?"), assistant("Red"))),
            Document((user("Draw blue."), assistant("Here: ", blue))),
            Document((user(green, " and ", red), assistant("Both ", blue))),
            Document((user("a"), assistant("b"))),
            Document((user("More words than all the others have."), assistant(red))),
            Document((user("c"), assistant(green, " d"))),
        ]

    def __getitem__(self, position: int) -> Document:
        return self.held[position % len(self.held)]


LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "seed": ("rebus.papers.seed.stages.stage3_pretrain", {"loss": "all", "pack": 40}),
    "lavit": ("rebus.papers.lavit.language_training", {"loss": "all", "pack": None}),
    "seed_x": ("rebus.papers.seed_x.language_training", {}),
}
"""Where each paper's `LanguageTraining` is, and what else it is told."""


def speaking(paper: str, *, batch: int, optim: Optim, base: torch.dtype = torch.float32) -> Stage[Any]:
    """A language stage of a paper's tiny system: adapters on a frozen base model, rows, projectors."""
    from rebus.data.loader import Loader
    from rebus.nn.lora import add_lora

    system = tiny.fresh(paper)
    add_lora(system.lm.llm, rank=2, dropout=0.0, generator=tiny.generator(3))
    system.lm.llm.base.to(base)
    generator = tiny.generator(0)
    for name, parameter in system.lm.llm.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:  # which begins at zero, so that the first matrix would learn nothing
            nn.init.normal_(parameter.data, std=0.1, generator=generator)
    place, told = LANGUAGE[paper]
    if paper != "seed":  # the others draw patches or views
        told = told | {"generator": generator}
    if paper == "lavit":
        system.tokenizer.choose("threshold")
    training = importlib.import_module(place).LanguageTraining
    module = training(system.lm, system.tokenizer, system.grammar, template="plain", **told)
    patterns = ["lm.llm.rows.*", "lm.llm.*lora_*"]
    patterns += [f"lm.{name}.*" for name in ("input_projector", "output_projector") if getattr(system.lm, name)]
    return Stage(
        name=f"{paper}.tiny",
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, documents: module.prepare(documents),
        trainable=[Trainable(pattern, 1e-2) for pattern in patterns],
        data=Loader(Repeated(), **parallel.sharded(batch)),
        optim=optim,
        generators={"patches": generator},
    )


# the gradient of a key's bias is zero but for rounding, which a small epsilon would make as large as any other
SHORT = Optim(steps=2, precision="fp32", weight_decay=0.1, clip=0.5, eps=1e-4)


def train_paper(
    paper: str, folder: Path, layout: Layout, batch: int = 4, base: torch.dtype = torch.float32, **optim: Any
) -> list[float]:
    """The losses of a language stage, whose weights lie in `folder` afterwards."""
    stage = speaking(paper, batch=batch, optim=replace(SHORT, **optim), base=base)
    return fit(stage, folder, device="cpu", log_every=1, save_every=2, keep=9, layout=layout).losses


def train_pairs(files: Path, folder: Path, gather: str, layout: Layout) -> list[float]:
    """The losses of SEED's first stage on image-text pairs."""
    import seed_release
    from rebus.papers.seed.stages import stage1_qformer

    config = stage1_qformer.Config(
        seed_release.TOKENIZER, contrast_width=8, batch=8, lr=1e-2, optim=SHORT, gather=gather
    )
    paths = {"data": files / "data", "vision": files / "eva_vit_g.pth", "bert": files / "bert"}
    return fit(stage1_qformer.stage(config, files, **paths), folder, device="cpu", layout=layout).losses


# ------------------------------------------------------------------------------------------------ lines


class Line:
    """Points of a line, shared by the processes; `trouble` is asked before each batch."""

    def __init__(self, trouble: Callable[[int], None] = lambda step: None, batch: int = 4) -> None:
        self.share, self.at, self.trouble = parallel.sharded(batch), 0, trouble
        self.batch = batch

    def __iter__(self) -> Any:
        while True:
            self.at += 1
            self.trouble(self.at)
            x_B3 = torch.randn(self.batch, 3, generator=tiny.generator(self.at))
            first = self.share["rank"] * self.share["batch_size"]
            yield x_B3[first : first + self.share["batch_size"]]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def line(steps: int = 6, trouble: Callable[[int], None] | None = None, **optim: Any) -> Stage[Tensor]:
    """A stage so small that nothing but its surroundings takes time; its noise is each process's own."""
    noise = tiny.generator(5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 1))

    def step(net: nn.Module, x_B3: Tensor) -> Losses:
        noisy_B3 = x_B3 + 0.1 * torch.randn(x_B3.shape, generator=noise)
        return Losses((net(noisy_B3)[:, 0] - x_B3.sum(1)).square().mean(), {"drawn": float(noise.initial_seed() != 5)})

    settings = Optim(steps=steps, precision="fp32", **optim)
    return Stage(
        "line",
        net,
        step,
        [Trainable("*", 1e-2)],
        Line(trouble or (lambda step: None)),
        settings,
        generators={"noise": noise},
    )


def train_line(folder: Path, layout: Layout, trouble: str = "", **options: Any) -> Any:
    """A training of the line, with trouble on the last process: `refuse`, `stop`, `full` or `nan`, at its fourth batch."""

    def make(step: int) -> None:
        if step != 4 or parallel.rank() != parallel.world_size() - 1:
            return
        if trouble == "refuse":
            raise RebusError("A document has 334 words, but a row holds 320.")
        if trouble == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if trouble == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))

    stage = line(trouble=make, **options)
    if trouble == "nan":
        step, calls = stage.step, iter(range(100))

        def spoiled(net: nn.Module, x_B3: Tensor) -> Any:
            out = step(net, x_B3)
            bad = next(calls) == 3 and parallel.rank() == 1
            return Losses(out.total * float("nan"), out.parts) if bad else out

        stage.step = spoiled
    return fit(stage, folder, device="cpu", log_every=2, save_every=2, keep=9, layout=layout)


def train_watched(folder: Path, layout: Layout) -> Any:
    """A training of the line whose ability falls between its second and its fourth step; and what its weights are then. The
    last process is slow to look at what was measured before: it must not see what the first has measured since."""
    stage = line(steps=6)
    look = Gates.of

    def late(*given: Any) -> Gates:
        time.sleep(0.5 * parallel.rank())
        return look(*given)

    Gates.of = late  # type: ignore[method-assign, assignment]  # in a process of its own
    figures = iter((0.9, 0.8, 0.1))

    def battery() -> Any:
        stage.module(torch.ones(2, 3))  # asks the weights, of which a process may hold only a part
        yield "able", next(figures)

    stage.gates = [Gate(battery, every=2, margins={"able": Margin(0.3)})]
    result = fit(stage, folder, device="cpu", log_every=2, save_every=2, keep=9, layout=layout)
    return result.step, result.fell, {name: whole(x) for name, x in stage.module.state_dict().items()}


def whole(x: Tensor) -> Tensor:
    """A tensor that processes share, as one."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def refusing(step: int) -> None:
    """A batch that the last process refuses."""
    if step == 4 and parallel.rank() == parallel.world_size() - 1:
        raise RebusError("A document has 334 words, but a row holds 320.")


def command(folder: Path, rank: int, port: int, words: list[str]) -> tuple[int, str, str]:
    """`rebus train` as torchrun starts it: exit code, what it said, and the errors."""
    import contextlib
    import io

    from rebus.apps import cli

    dist.destroy_process_group()
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    out, err = io.StringIO(), io.StringIO()
    cli.out.file, cli.err.file = out, err
    with contextlib.redirect_stderr(err):
        code = cli.main(["train", "tests.line_stage", "--out", str(folder), "--device", "cpu", *words])
    return code, out.getvalue(), err.getvalue()


def gathered(counts: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Features of which each process has another number: all of them, this process's gradient, and where its own begin."""
    rank = parallel.rank()
    x_BD = torch.randn(counts[rank], 2, generator=tiny.generator(rank)).requires_grad_()
    everywhere_AD = parallel.all_gather_features(x_BD)
    (everywhere_AD * torch.arange(len(everywhere_AD))[:, None] * (rank + 1)).sum().backward()
    return everywhere_AD.detach(), x_BD.grad, parallel.first_of(counts[rank])
