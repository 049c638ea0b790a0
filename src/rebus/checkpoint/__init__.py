"""Weights on disk: read, convert between the published layout and ours, write whole or not at all, load strictly."""

from rebus.checkpoint.rules import Converted, Drop, Join, Move, Rule, Split, check_complete, convert, export
from rebus.checkpoint.saved import (
    SavedSystem,
    config_from_json,
    config_to_json,
    load_module,
    load_system,
    save_system,
    without_weights,
)
from rebus.checkpoint.tensors import LazyTensors, lay_over, read_tensors, write_pickle, write_tensors

__all__ = [
    "Converted",
    "Drop",
    "Join",
    "LazyTensors",
    "Move",
    "Rule",
    "SavedSystem",
    "Split",
    "check_complete",
    "config_from_json",
    "config_to_json",
    "convert",
    "export",
    "lay_over",
    "load_module",
    "load_system",
    "read_tensors",
    "save_system",
    "without_weights",
    "write_pickle",
    "write_tensors",
]
