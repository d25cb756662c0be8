"""What loading will do, decided before anything is touched: every branch with its method, its place and how it goes in.

All that can be wrong between an adapter and a model is found here, by name; no tensor is expanded or changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import nn

from adapterpack.adapter import Adapter, Branch, Branches, BranchGroup, Head, Params, Site
from adapterpack.errors import CallError, CorruptFileError, Reason, UnsupportedAdapterError, UnsupportedVersionError
from adapterpack.methods import METHODS
from adapterpack.methods._base import Method, transforms
from adapterpack.packing.check import check_settings
from adapterpack.runtime.places import Place, Places, Residual
from adapterpack.tensors import Shape

Fold = Literal["auto", "always", "never"]
FOLDS: tuple[Fold, ...] = ("auto", "always", "never")

# How a branch goes in: added into the parameters in place; beside the module, as a hook; or, where there is no output
# that a hook could add to (norms, bare parameters, replacements), as another parameter in the place of the first.
How = Literal["fold", "hook", "residual", "swap"]

Checked = tuple[Method, Mapping[str, Shape]]  # a method, and the shapes that a place must have for a branch to fit


@dataclass(slots=True, eq=False)
class Step:
    """One branch, by its number in its group, and how it goes in; `at` is a `Residual` exactly where `how` is
    "residual"."""

    group: BranchGroup
    number: int
    site: Site
    method: Method
    how: How
    at: Place | Residual

    @property
    def params(self) -> Params:
        return self.group.params

    @property
    def roles(self) -> Collection[str]:
        return self.group.columns.keys()

    @property
    def place(self) -> Place:
        return cast(Place, self.at)

    @property
    def order(self) -> tuple[int, bool, str]:
        """Replacements first; what changes the module itself, whole before part; what is added beside it; what reads
        its output with all of that in it; last what reads the residual stream behind it. Of the last two, which act on
        each other, whole before part, and by their settings: a packed file does not keep the order in memory."""
        part, params = bool(self.site.part), self.params
        if self.method.replaces:
            return 0, False, ""
        if transforms(self.method):
            return 1, part, self.method.name
        last = {"output": 3, "sum": 4}.get(self.method.tap(params))
        return (2, False, "") if last is None else (last, part, repr(sorted(params.items())))


def plan(adapter: Adapter, model: nn.Module, fold: Fold) -> list[Step]:
    """Resolve every site and check every shape.

    Args:
        adapter: decoded.
        model: a timm `VisionTransformer`.
        fold: "auto", "always" or "never".

    Raises:
        UnsupportedAdapterError: `missing-site`, `site-shape`, `not-foldable`, `missing-tensor`, `unmapped-tensor`,
            `bad-parameter`, `duplicate-name` or `unsupported-model`, naming the site.
        UnsupportedVersionError: `unknown-method`.
        CallError: `bad-call`, another value of `fold`.
    """
    if fold not in FOLDS:
        raise CallError(f"fold is {fold!r}", Reason.BAD_CALL, hint=f"expected one of {', '.join(FOLDS)}")
    steps = _in_order_of_effect(_steps(adapter.branches, model, fold))
    _require_foldable(steps, fold)
    _require_single_replacements(steps)
    return steps if _alike(steps) else sorted(steps, key=lambda step: step.order)


def _alike(steps: Sequence[Step]) -> bool:
    """Whether all are of one group that is only added somewhere: they stand in order already."""
    return len({id(step.group) for step in steps}) == 1 and steps[0].order[0] == 2


def check_head(adapter: Adapter, features: int) -> None:
    """Refuse a head of another width than the backbone's, and labels that are not one per class.

    Raises:
        UnsupportedAdapterError: `site-shape`, `bad-labels`.
    """
    head = adapter.head
    if head is None:
        return
    weight, expected = head.weight.shape, f"[classes, {features}]"
    if len(weight) != 2 or weight[1] != features or weight[0] < 1:
        raise _misfit("head", f"weight has shape {list(weight)}, expected {expected}")
    if head.bias is not None and head.bias.shape != (weight[0],):
        raise _misfit("head", f"bias has shape {list(head.bias.shape)}, expected [{weight[0]}]")
    _check_labels(adapter, head)


def _check_labels(adapter: Adapter, head: Head) -> None:
    if adapter.labels is not None and len(adapter.labels) != head.classes:
        text = f"there are {len(adapter.labels)} labels for {head.classes} classes"
        raise UnsupportedAdapterError(text, Reason.BAD_LABELS, "head", "give one label for each class, in order")


def _steps(branches: Sequence[Branch], model: nn.Module, fold: Fold) -> list[Step]:
    steps: list[Step] = []
    places = Places(model)
    for group in Branches.of(branches).groups:
        method, needed = checked = _needs(group)
        if "prefix" in method.settings:
            _check_prefix(group, model)
        if method.tap(group.params) in ("residual", "sum"):
            (width,) = needed["residual"]
            for number, site in enumerate(group.sites):
                steps.append(Step(group, number, site, method, "residual", _ends(places, site, width)))
        else:
            steps += _beside_or_in(group, checked, places, fold)
    return steps


def _beside_or_in(group: BranchGroup, checked: Checked, places: Places, fold: Fold) -> Iterator[Step]:
    """The steps of branches that are not on the residual stream."""
    method, _ = checked
    before: tuple[nn.Module, str, int] | None = None
    for number, site in enumerate(group.sites):
        place = places.resolve(site)
        alike = place.module, place.value, place.rows[1] if place.rows else 0
        if alike != before:  # else the v of a layer whose q was looked at already
            how, before = _how_at(place, group, checked, fold), alike
        yield Step(group, number, site, method, how, place)


def _check_prefix(group: BranchGroup, model: nn.Module) -> None:
    """Refuse a branch on the grid of patches that counts other tokens before it than the model has."""
    found, expected = getattr(model, "num_prefix_tokens", None), group.params["prefix"]
    if found is not None and found != expected:
        text = f"{group.method} was made for {expected} tokens before the patches, the model has {found}"
        raise _misfit(str(group.sites[0]), text)


def _needs(group: BranchGroup) -> Checked:
    """The method of a group's branches, and the shapes that each needs."""
    site = str(group.sites[0])
    if group.method not in METHODS:
        text = f"method {group.method!r} is unknown"
        raise UnsupportedVersionError(text, Reason.UNKNOWN_METHOD, site, "update adapterpack")
    method = METHODS[group.method]
    _check_roles(group, method)
    shapes = {role: column[0].shape for role, column in group.columns.items()}
    try:
        check_settings(method, group.params, site)
    except CorruptFileError as error:
        raise UnsupportedAdapterError(error.message, Reason(error.reason), error.where, error.hint) from error
    try:
        return method, method.features(shapes, group.params)
    except ValueError as error:
        raise _misfit(site, str(error)) from error


def _ends(places: Places, site: Site, width: int) -> Residual:
    found = places.residual(site)
    if found.width != width:
        raise _misfit(str(site), f"it writes {width} features, the model has {found.width}")
    return found


def _how_at(place: Place, group: BranchGroup, checked: Checked, fold: Fold) -> How:
    """How a branch goes in that fits its place.

    Raises:
        UnsupportedAdapterError: `site-shape`, `missing-site`, `unsupported-model`.
    """
    method, needed = checked
    _check_shapes(place, needed, method)
    how = _how(place, needed, method, fold)
    if how != "fold" and transforms(method):
        how = _transform_how(place, needed, method, group.params)
    if how == "hook" and place.no_hook:
        return _unhooked(place, needed, method)
    return how


def _unhooked(place: Place, needed: Mapping[str, Shape], method: Method) -> How:
    """Another weight instead of a hook, which would do nothing, or the wrong thing, without a word."""
    if (method.foldable or transforms(method)) and all(place.has(role) for role in needed):
        return "swap"
    text = f"{place.site}: {place.no_hook}, so {method.name} cannot run beside this layer"
    raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, str(place.site), "use a method that changes weights")


def _transform_how(place: Place, needed: Mapping[str, Shape], method: Method, params: Params) -> How:
    """Beside the module where the output alone changes; else as another weight in the place of its own."""
    if method.tap(params) == "output" and not isinstance(place.module, nn.Conv2d):
        return "hook"
    if all(place.has(role) for role in needed):
        return "swap"
    text = f"{place.site} has no weight of its own, which {method.name} would change"
    raise UnsupportedAdapterError(text, Reason.MISSING_SITE, str(place.site))


def _in_order_of_effect(steps: list[Step]) -> list[Step]:
    """Where other branches share its module, a transform goes into the weight, which all of them are added to."""
    if not any(map(transforms, {id(step.method): step.method for step in steps}.values())):
        return steps
    shared = Counter(id(step.place.module) for step in steps if step.how != "residual")

    def crowded(step: Step) -> bool:
        beside = step.how == "hook" and transforms(step.method) and shared[id(step.place.module)] > 1
        return beside and all(step.place.has(role) for role in _needs(step.group)[1])

    return _beside_a_shift([replace(step, how="swap") if crowded(step) else step for step in steps])


def _beside_a_shift(steps: list[Step]) -> list[Step]:
    """Where a transform has to stay beside its module, which lacks the bias for it, so does all that is added there."""
    stays = {id(s.place.module) for s in steps if s.how == "hook" and transforms(s.method)}
    if not stays:
        return steps
    for step in steps:
        if step.how != "residual" and id(step.place.module) in stays and step.method.name == "dora":
            text = f"{step.place.site} has no bias for the shift, so dora cannot act on the result"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, str(step.place.site))
    added = [s.how == "fold" and s.order[0] == 2 and id(s.place.module) in stays for s in steps]
    return [replace(step, how="hook") if beside else step for step, beside in zip(steps, added)]


def _how(place: Place, needed: Mapping[str, Shape], method: Method, fold: Fold) -> How:
    if fold != "never" and method.foldable and all(place.has(role) for role in needed):
        return "fold"
    hookable = not method.replaces and (isinstance(place.module, nn.Linear) or not method.foldable)
    return "hook" if hookable else "swap"


def _check_roles(group: BranchGroup, method: Method) -> None:
    roles, given, site = method.roles, group.columns.keys(), str(group.sites[0])
    for role in roles.required:
        if role not in given:
            raise UnsupportedAdapterError(f"{method.name} at {site} has no {role}", Reason.MISSING_TENSOR, site)
    if not given:
        raise UnsupportedAdapterError(f"{method.name} at {site} has no tensors", Reason.MISSING_TENSOR, site)
    for role in given:
        if role not in roles.order:
            text, hint = f"{method.name} at {site} has no use for {role}", f"expected {', '.join(roles.order)}"
            raise UnsupportedAdapterError(text, Reason.UNMAPPED_TENSOR, site, hint)


def _check_shapes(place: Place, needed: Mapping[str, Shape], method: Method) -> None:
    for role, shape in needed.items():
        found = place.shape(role)
        if found is None or (method.replaces and not place.has(role)):
            text = f"the model has no {role} at {place.site}"
            raise UnsupportedAdapterError(text, Reason.MISSING_SITE, str(place.site))
        if found != tuple(shape):
            conv = ", of a convolution" * (len(found) > 2 == len(shape))
            text = f"the adapter needs a {role} of {list(shape)}, the model has {list(found)}{conv}"
            raise _misfit(str(place.site), text)


def _require_foldable(steps: Sequence[Step], fold: Fold) -> None:
    stuck = [step for step in steps if step.how != "fold"] if fold == "always" else []
    if stuck:
        first = f"{stuck[0].method.name} at {stuck[0].site}"
        more = f" and {len(stuck) - 1} more branches" if len(stuck) > 1 else ""
        raise UnsupportedAdapterError(
            f"{first}{more} cannot be folded", Reason.NOT_FOLDABLE, str(stuck[0].site), 'use fold="auto"'
        )


def _require_single_replacements(steps: Sequence[Step]) -> None:
    seen: set[tuple[int, str, object]] = set()
    for step in steps:
        if step.method.replaces:
            for role in step.roles:
                key = (id(step.place.module), step.place.name(role), step.place.rows)
                if key in seen:
                    text = f"{role} at {step.site} is replaced twice"
                    raise UnsupportedAdapterError(text, Reason.DUPLICATE_NAME, str(step.site))
                seen.add(key)


def _misfit(site: str, text: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(f"{site}: {text}", Reason.SITE_SHAPE, site, "was it trained on another backbone?")
