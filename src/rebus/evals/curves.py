"""Curves of an evaluation as pictures; matplotlib, an extra, draws them."""

from __future__ import annotations

from pathlib import Path

from rebus.evals.figures import Curve


def draw_curve(curve: Curve, path: Path) -> None:
    """Writes a PNG: a panel for each thing that was measured, its mean over the seeds and their range at each setting, and
    the ceiling where there is one. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure as Page

    page = Page(figsize=(3.6 * len(curve.figures), 3.0), dpi=110, layout="constrained")
    for number, (name, figures) in enumerate(curve.figures.items(), 1):
        axes = page.add_subplot(1, len(curve.figures), number)
        means = [figure.value for figure in figures]
        below = [figure.value - figure.low for figure in figures]
        above = [figure.high - figure.value for figure in figures]
        axes.errorbar(curve.at, means, yerr=[below, above], fmt="o-", capsize=3)
        ceilings = [figure.ceiling for figure in figures if figure.ceiling is not None]
        if ceilings and name != "psnr":  # a picture beside itself has no error, which no axis has room for
            axes.axhline(ceilings[0], color="grey", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(curve.over)
        axes.grid(alpha=0.3)
    page.savefig(path, format="png")
