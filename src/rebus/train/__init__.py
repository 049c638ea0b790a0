"""Training: a stage says what learns from what, `fit` runs it."""

from rebus.train.fit import FitResult, fit
from rebus.train.sharding import Layout
from rebus.train.stage import Evaluation, Gate, Losses, Margin, Optim, Resumable, Stage, Trainable, trainable_table

__all__ = [
    "Evaluation",
    "FitResult",
    "Gate",
    "Layout",
    "Losses",
    "Margin",
    "Optim",
    "Resumable",
    "Stage",
    "Trainable",
    "fit",
    "trainable_table",
]
