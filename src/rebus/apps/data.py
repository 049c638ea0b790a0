"""`rebus data`: training data is fetched and built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rebus.apps.loading import Bar

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def data(
    name: Positional[
        Annotated[Literal["emoji", "lines"], arg(help="emoji, or lines: the line drawings of built emoji")]
    ],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER", help="the folder to build it in")] = Path(
        "state/emoji"
    ),
    workers: Annotated[int, arg(help="processes that render pictures")] = 2,
) -> None:
    """Fetch and build training data: the permissive emoji sets, rendered, labelled and split."""
    from rebus.data.emoji_build import build
    from rebus.packages import user_cache

    if name == "lines":
        from rebus.data.line_art import FILE, build_line_art
        from rebus.data.pictures import load_pictures

        with Bar(err) as bar:
            path = build_line_art(load_pictures(output), output / FILE, user_cache(), bar)
        out.print(f"line drawings are in {path}", soft_wrap=True)
        return
    with Bar(err) as bar:
        counts = build(output, user_cache(), bar, workers=workers)
    families = list(dict.fromkeys(family for row in counts.values() for family in row["families"]))
    table = Table("split", "pictures", "concepts", *families, box=None, header_style="bold")
    for split, row in counts.items():
        numbers = [row["pictures"], row["concepts"], *(row["families"].get(family, 0) for family in families)]
        table.add_row(split, *(f"{number:,}" for number in numbers))
    out.print(table)
    out.print(f"{name} is in {output}", soft_wrap=True)
