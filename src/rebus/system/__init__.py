"""A system: tokenizer, grammar, language model and detokenizer together; and loading one by name."""

from rebus.system.dice import Dice
from rebus.system.encoding import encode
from rebus.system.engine import Engine, Job, Said
from rebus.system.loading import PARTS, known_adapters, known_systems, load
from rebus.system.parts import Scorer, System
from rebus.system.plan import Plan, Source, plan
from rebus.system.pretrained import Portable, text_files
from rebus.system.readback import ReadBack, reply

__all__ = [
    "PARTS",
    "Dice",
    "Engine",
    "Job",
    "Plan",
    "Portable",
    "Said",
    "Scorer",
    "Source",
    "System",
    "encode",
    "known_adapters",
    "known_systems",
    "load",
    "plan",
    "ReadBack",
    "reply",
    "text_files",
]
