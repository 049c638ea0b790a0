"""SEED-X (2404.14396): reads images of any size and shape, points with boxes, draws by regressing visual features, edits.

A vision encoder turns each view of an image, tiles of a grid and the whole, into 256 vectors; a resampler makes 64 of
them, which the language model reads. To draw, the language model takes 64 words that are always the same; another
resampler turns its hidden states there into the encoder's features, pooled, which a latent diffusion model paints.

Departures from the published code: all words of an image are taken in one pass; words that may not follow have no chance
(there: a score of zero); a box has exactly four locations and an image is only begun when it can be finished (`replies`);
padding is never seen, so that batches may hold documents of any length and number of images; losses are computed in
float32; a picture that was drawn is read again from its pixels in later turns; tensors of another name or shape are
refused; the image decoder's input layer keeps its bias when it is widened for a source (there: a new, random one).
`official` brings back the replies.
"""

from rebus.papers.seed_x.build import build, official
from rebus.papers.seed_x.speciality import adapt, adapters
from rebus.papers.seed_x.variants import VARIANTS, SeedXConfig

__all__ = ["VARIANTS", "SeedXConfig", "adapt", "adapters", "build", "official"]
