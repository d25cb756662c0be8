"""The registry of methods: one file each, and a row here."""

from adapterpack._registry import Registry
from adapterpack.methods._base import Method
from adapterpack.methods.adapter import BottleneckAdapter
from adapterpack.methods.adaptformer import AdaptFormer
from adapterpack.methods.affine import Affine
from adapterpack.methods.consolidator import Consolidator
from adapterpack.methods.convpass import Convpass
from adapterpack.methods.dora import Dora
from adapterpack.methods.fact import Fact
from adapterpack.methods.lora import Lora
from adapterpack.methods.replace import Replacement
from adapterpack.methods.sparse import SparseUpdate

METHODS: Registry[Method] = Registry(
    "method",
    (
        Lora(),
        AdaptFormer(),
        BottleneckAdapter(),
        Consolidator(),
        SparseUpdate(),
        Replacement(),
        Affine(),
        Dora(),
        Convpass(),
        Fact(),
    ),
)
