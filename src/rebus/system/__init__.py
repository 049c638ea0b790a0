"""A system: tokenizer, grammar, language model and detokenizer together; and loading one by name."""

from rebus.system.dice import Dice
from rebus.system.encoding import encode
from rebus.system.loading import PARTS, known_systems, load
from rebus.system.parts import Scorer, System
from rebus.system.readback import read_back, reply

__all__ = ["PARTS", "Dice", "Scorer", "System", "encode", "known_systems", "load", "read_back", "reply"]
