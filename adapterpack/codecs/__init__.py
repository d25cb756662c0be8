"""The registry of codecs: one file each, and a row here."""

from adapterpack._registry import Registry
from adapterpack.codecs._base import Codec
from adapterpack.codecs.codebook import Codebook
from adapterpack.codecs.predictive import PredictiveSigns
from adapterpack.codecs.predictive_codebook import PredictiveCodebook
from adapterpack.codecs.raw import Raw
from adapterpack.codecs.signs import Signs
from adapterpack.codecs.sparse import SparseEntries

CODECS: Registry[Codec] = Registry(
    "codec", (Raw(), Signs(), Codebook(), SparseEntries(), PredictiveSigns(), PredictiveCodebook())
)
