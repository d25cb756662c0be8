"""Where a site is in a live model: the module, the parameters, and for q, k and v the rows of the fused projection.

It reads a model and never changes one, and it knows nothing of methods.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from adapterpack.adapter import Site
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.families import CLASSIFIERS, attention_ends, has_thirds, mlp_ends, no_hook, width_of

# how many features a module takes and gives: its own, or those of the linear layer at its entrance or exit
_ENDS = {"input": ("qkv", "fc1", "q_proj", "q", "to_q", "query"), "output": ("proj", "fc2")}
_AROUND = {"attn": ("attention", attention_ends), "mlp": ("MLP", mlp_ends)}
_SEPARATE = {
    "q": ("q_proj", "q", "to_q", "query"),
    "k": ("k_proj", "k", "to_k", "key"),
    "v": ("v_proj", "v", "to_v", "value"),
}


@dataclass(slots=True, eq=False)  # not frozen, like `plan.Step`: a load makes dozens, and freezing triples the cost
class Place:
    """A site found in a model.

    Attributes:
        site: as the adapter names it.
        module: holds the parameters; its output is the site's.
        value: the attribute's name where the site is a bare parameter of `module`, else "".
        rows: (start, length) of the site in a fused projection's output, or None for all of it.
        no_hook: why a hook on the module cannot add to the site's output, "" where it can.
        compiled: whether `compile()` was called on the module or on one around it.
    """

    site: Site
    module: nn.Module
    value: str = ""
    rows: tuple[int, int] | None = None
    no_hook: str = ""
    compiled: bool = False

    def name(self, role: str) -> str:
        """The attribute of `module` that a role ("weight", "bias", "value") stands for."""
        return self.value if role == "value" else role

    def tensor(self, role: str) -> Tensor | None:
        """The site's rows of a parameter, a view, or None where the module has no such parameter."""
        return self.view(self.module._parameters.get(self.name(role))) if self.has(role) else None

    def has(self, role: str) -> bool:
        """Whether the module has the parameter that a role stands for; "input" and "output" stand for the weight."""
        role = "weight" if role in _ENDS else role
        return (role == "value") == bool(self.value) and self.module._parameters.get(self.name(role)) is not None

    def view(self, parameter: Tensor | None) -> Tensor | None:
        """The site's rows of a tensor shaped like the whole parameter."""
        if parameter is None or self.rows is None:
            return parameter
        return parameter.narrow(0, *self.rows)

    def shape(self, role: str) -> tuple[int, ...] | None:
        """The shape that a role must have here; a linear layer without a bias still has the bias's shape. "input" and
        "output" give how many features the module takes and gives."""
        if (role == "value") != bool(self.value):
            return None
        if role in _ENDS:
            return self._features(role)
        found: Tensor | None = self.module._parameters.get(self.name(role))
        if found is None and role == "bias" and isinstance(self.module, nn.Linear):
            found = self.module.weight[:, 0]
        if found is None:
            return None
        return tuple(found.shape) if self.rows is None else (self.rows[1], *found.shape[1:])

    def _features(self, end: str) -> tuple[int, ...] | None:
        if end == "output" and self.rows is not None:
            return self.rows[1:]
        inside = [self.module, *(self.module._modules.get(name) for name in _ENDS[end])]
        for module in inside:
            weight = None if module is None else module._parameters.get("weight")
            if weight is not None:
                return tuple(weight.shape[:1] if end == "output" else weight.shape[1:2]) or None
        return None


@dataclass(slots=True, eq=False)
class Residual:
    """Where a branch on the residual stream reads and adds.

    Attributes:
        norm: its input is the stream before the attention or the MLP.
        end: to its output the branch is added.
        width: features of the stream.
        channels_first: whether they come after the batch, and not last.
        whole: whether `end` gives the stream behind, and not only what is added to it.
        compiled: whether `compile()` was called on one of them or on a module around them.
    """

    norm: nn.Module
    end: nn.Module
    width: int
    channels_first: bool = False
    whole: bool = False
    compiled: bool = False


@dataclass(slots=True, eq=False)
class _Found:
    """Where a path leads.

    Attributes:
        parent, module: the deepest module on it (`module`), and the one around that.
        rest: the names that are left.
        compiled: whether `compile()` was called on one of the modules on it.
        third: rows of each of q, k and v where `module` is their fused projection, else 0.
        no_hook: see `Place`.
    """

    parent: nn.Module
    module: nn.Module
    rest: list[str]
    compiled: bool
    third: int = 0
    no_hook: str = ""


class Places:
    """The places of a model. A path is followed once: q, k and v of a layer have it in common."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found: dict[str, _Found] = {}

    def resolve(self, site: Site) -> Place:
        """Find a site.

        Args:
            site: `blocks.3.attn.qkv[q]`, `norm`, `cls_token`, …

        Raises:
            UnsupportedAdapterError: `missing-site`.
        """
        found = self._found.get(site.path)
        if found is None:
            found = self._found[site.path] = _find(self._model, site)
        third = found.third
        if site.part and third:
            return Place(site, found.module, "", ("qkv".index(site.part) * third, third), found.no_hook, found.compiled)
        if site.part:
            return self._separate(site, found)
        if not found.rest:
            return Place(site, found.module, no_hook=found.no_hook, compiled=found.compiled)
        value = found.rest[0]
        if len(found.rest) == 1 and found.module._parameters.get(value) is not None:
            return Place(site, found.module, value=value, compiled=found.compiled)
        raise _missing(site, _reason(self._model, found.module, site.path.split("."), found.rest))

    def _separate(self, site: Site, found: _Found) -> Place:
        """q, k or v in an attention that has no fused projection."""
        if found.rest == ["qkv"]:
            for name in _SEPARATE[site.part]:
                child = found.module._modules.get(name)
                if isinstance(child, nn.Linear):
                    return Place(site, child, compiled=found.compiled or _is_compiled(child))
        raise _missing(site, _no_part(self._model, found.module, site.path.split("."), found.rest))

    def residual(self, site: Site) -> Residual:
        """The ends of the residual connection around an MLP or an attention.

        Args:
            site: `blocks.N.mlp` or `blocks.N.attn`, or another block's.

        Raises:
            UnsupportedAdapterError: `missing-site`, or `unsupported-model` for a post-norm, parallel or unknown block.
        """
        names = site.path.split(".")
        around = _AROUND.get(names[-1])
        if len(names) < 2 or around is None or site.part:
            raise _missing(site, "a branch on the residual stream is at a block's mlp or attn, like blocks.N.mlp")
        found = _follow(self._model, names[:-1])
        block = found.module
        inside = block._modules.get(names[-1])
        if found.rest or inside is None:
            raise _missing(site, _reason(self._model, block, names, found.rest + names[-1:]))
        what, ends_of = around
        ends = ends_of(block)
        if ends is None:
            kind = type(block).__name__
            text = f"{site}: a {kind} is not known to have a pre-norm residual connection around its {what}"
            raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="expected a pre-norm block of timm")
        norm, end, first = ends
        compiled = found.compiled or _is_compiled(norm) or _is_compiled(inside) or _is_compiled(end)
        return Residual(norm, end, width_of(self._model, block), first, end is block, compiled)


def resolve(model: nn.Module, site: Site) -> Place:
    """One site of a model, see `Places.resolve`."""
    return Places(model).resolve(site)


def residual(model: nn.Module, site: Site) -> Residual:
    """One site of a model, see `Places.residual`."""
    return Places(model).residual(site)


def _find(model: nn.Module, site: Site) -> _Found:
    names = site.path.split(".")
    if site.path in CLASSIFIERS or (names[0] in CLASSIFIERS and len(names) == 2 and names[1] in ("weight", "bias")):
        raise _missing(site, "the classifier is no site: it comes as the task's head")
    found = _follow(model, names)
    if not found.rest:
        module, found.no_hook = found.module, no_hook(found.parent, names[-1])
        if names[-1].endswith("qkv") and isinstance(module, nn.Linear) and module.out_features % 3 == 0:
            found.third = module.out_features // 3 if has_thirds(found.parent) else 0
    return found


def _follow(model: nn.Module, names: list[str]) -> _Found:
    """Go as far along a path as there are modules."""
    parent = module = model
    compiled = _is_compiled(model)
    for depth, name in enumerate(names):
        child = module._modules.get(name)
        if child is None:
            return _Found(parent, module, names[depth:], compiled)
        parent, module = module, child
        compiled = compiled or _is_compiled(child)
    return _Found(parent, module, [], compiled)


def _is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called, after which its code goes on without hooks that are added."""
    return module.__dict__.get("_compiled_call_impl") is not None


def _no_part(model: nn.Module, module: nn.Module, names: list[str], rest: list[str]) -> str:
    if rest:
        return _reason(model, module, names, rest)
    kind = type(_follow(model, names[:-1]).module).__name__
    if names[-1] == "qkv" and isinstance(module, nn.Linear):
        return f"the rows of a {kind}'s qkv are not known to be q, k and v as a whole; name the site without the part"
    return "only an attention's qkv has q, k and v rows"


def _reason(model: nn.Module, module: nn.Module, names: list[str], rest: list[str]) -> str:
    depth = len(names) - len(rest)
    blocks = model._modules.get("blocks")
    if names[0] == "blocks" and depth == 1 and blocks is not None:
        return f"the model has {len(blocks._modules)} blocks"
    where = ".".join(names[:depth]) or "the model"
    known = [*module._modules, *module._parameters]
    return f"{where} has {', '.join(known[:12]) or 'nothing of its own'}"


def _missing(site: Site, why: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(f"the model has no site {site}", Reason.MISSING_SITE, str(site), why)
