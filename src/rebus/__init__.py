"""Documents of text and images, read and written by language models: SEED, LaVIT, SEED-X.

    import rebus
    system = rebus.load("seed:mini")
    document = rebus.Document((rebus.user(rebus.Image(pixels), "What is this?"),))
    for part in system.stream(document):
        ...

What is needed to build such a model stands in the modules of the same names as the nouns.
"""

from typing import TYPE_CHECKING, Any

from rebus.document import Box, Document, Image, Message, assistant, user
from rebus.errors import RebusError

if TYPE_CHECKING:
    from rebus.sampling import Sampling
    from rebus.system import System, load

__all__ = ["Box", "Document", "Image", "Message", "RebusError", "Sampling", "System", "assistant", "load", "user"]
__version__ = "0.1.0.dev0"

LATER = {"load": "rebus.system", "System": "rebus.system", "Sampling": "rebus.sampling"}


def __getattr__(name: str) -> Any:
    """What loads the language models' libraries is imported when it is first asked for, which takes seconds."""
    if name in LATER:
        import importlib

        return getattr(importlib.import_module(LATER[name]), name)
    raise AttributeError(f"module 'rebus' has no attribute {name!r}")
