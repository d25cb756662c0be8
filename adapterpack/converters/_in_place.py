"""Parameters of the backbone itself that a state dict carries: which were trained in place, and which are dropped.

With the backbone at hand that is a comparison. Without it, only what a recipe or the settings say was trained is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from adapterpack.adapter import Branch, Site
from adapterpack.converters.schemes import Place
from adapterpack.errors import BackboneMismatchError, CallError, Reason
from adapterpack.tensors import Dense, Tensor

F32 = NDArray[np.float32]
_PARTS = {"q": 0, "k": 1, "v": 2}
_WRONG = (
    "check --backbone; if it was trained, list it in the setting trained, or, of a wholly fine-tuned model, say how to "
    "keep the differences: --as auto (settings={'as': 'auto'})"
)


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """A parameter of the backbone as a state dict has it.

    Attributes:
        name: in the state dict.
        place: where it belongs.
        values: float32, in the shape of the backbone's parameter (of its part, for q, k, v).
    """

    name: str
    place: Place
    values: F32


def backbone_value(backbone: Mapping[str, F32], place: Place, name: str) -> F32:
    """The backbone's own value of a parameter.

    Raises:
        BackboneMismatchError: `missing-site`.
    """
    site = Site.parse(place.site)
    key = site.path if place.role == "value" else f"{site.path}.{place.role}"
    if key not in backbone:
        raise BackboneMismatchError(
            f"the backbone has no {key} for {name}", Reason.MISSING_SITE, hint="check --backbone"
        )
    value = backbone[key]
    if not site.part:
        return value
    rows = len(value) // 3
    return value[_PARTS[site.part] * rows : (_PARTS[site.part] + 1) * rows]


def differs(plain: Plain, backbone: Mapping[str, F32]) -> bool:
    """Whether a parameter is not the backbone's, to the bit.

    Raises:
        BackboneMismatchError: `missing-site`, `site-shape`.
    """
    own = backbone_value(backbone, plain.place, plain.name)
    if own.shape != plain.values.shape:
        message = f"{plain.name} has shape {list(plain.values.shape)}, the backbone's {list(own.shape)}"
        raise BackboneMismatchError(message, Reason.SITE_SHAPE, hint="check --backbone")
    return not np.array_equal(own, plain.values)


def trained_in_place(
    plains: Sequence[Plain],
    backbone: Mapping[str, F32] | None,
    trained: Sequence[str] | None,
    recipe: Callable[[Plain], bool] | None,
) -> tuple[list[Branch], list[str]]:
    """The replacements, and notes on what was dropped.

    Args:
        plains: all parameters of the backbone in the state dict.
        backbone: its own tensors, or None.
        trained: names or patterns (`*.norm1.*`) that were trained in place, or None where nobody said.
        recipe: what the method's recipe trains in place, used where there is neither backbone nor `trained`.

    Raises:
        BackboneMismatchError: `backbones-differ` for a frozen matrix that is not the backbone's, and see `differs`.
        CallError: `bad-call` when only the backbone could tell.
    """
    listed = [p.name for p in plains if trained is not None and any(fnmatchcase(p.name, t) for t in trained)]
    unused = [t for t in trained or () if not any(fnmatchcase(p.name, t) for p in plains)]
    if unused:
        message = f"nothing in the state dict is called {unused[0]!r}, which was said to be trained"
        raise CallError(message, Reason.BAD_CALL, hint="name parameters of the backbone as the file does")
    if backbone is not None:
        kept = _compared(plains, backbone, listed)
    elif trained is not None:
        kept = [plain for plain in plains if plain.name in listed]
    else:
        kept = _by_recipe(plains, recipe)
    dropped = len(plains) - len(kept)
    compared = "equal to the backbone's" if backbone is not None else "(not compared: no backbone was given)"
    notes = [f"dropped {dropped} frozen tensors {compared}"] if dropped else []
    return replacements(kept), notes


def _compared(plains: Sequence[Plain], backbone: Mapping[str, F32], listed: Sequence[str]) -> list[Plain]:
    kept = [plain for plain in plains if differs(plain, backbone)]
    for plain in kept:
        if plain.place.kind == "frozen" and plain.name not in listed:
            message = f"{plain.name} is not the backbone's, though it should be frozen"
            raise BackboneMismatchError(message, Reason.BACKBONES_DIFFER, hint=_WRONG)
    return kept


def _by_recipe(plains: Sequence[Plain], recipe: Callable[[Plain], bool] | None) -> list[Plain]:
    frozen = [plain.name for plain in plains if plain.place.kind == "frozen"]
    if recipe is None and frozen:
        message = f"{frozen[0]} and {len(frozen) - 1} more matrices belong to the backbone"
        hint = (
            "give --backbone (backbone=…) to drop what was not trained, or list what was: --set trained=… (settings=…)"
        )
        raise CallError(message, Reason.BAD_CALL, hint=hint)
    return [plain for plain in plains if recipe is None or recipe(plain)]


def replacements(plains: Sequence[Plain]) -> list[Branch]:
    """One branch a site, its roles together."""
    sites: dict[str, dict[str, Tensor]] = {}
    for plain in plains:
        sites.setdefault(plain.place.site, {})[plain.place.role] = Dense(plain.values)
    return [Branch(Site.parse(site), "replace", {}, tensors) for site, tensors in sites.items()]
