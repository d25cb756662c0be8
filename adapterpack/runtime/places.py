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
    """

    site: Site
    module: nn.Module
    value: str = ""
    rows: tuple[int, int] | None = None
    no_hook: str = ""

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
    """

    norm: nn.Module
    end: nn.Module
    width: int
    channels_first: bool = False
    whole: bool = False


def resolve(model: nn.Module, site: Site) -> Place:
    """Find a site.

    Args:
        model: a timm `VisionTransformer`.
        site: `blocks.3.attn.qkv[q]`, `norm`, `cls_token`, …

    Raises:
        UnsupportedAdapterError: `missing-site`.
    """
    names = site.path.split(".")
    if site.path in CLASSIFIERS or (names[0] in CLASSIFIERS and len(names) == 2 and names[1] in ("weight", "bias")):
        raise _missing(site, "the classifier is no site: it comes as the task's head")
    parent, module, rest = _walk(model, names)
    if site.part:
        place = _resolve_part(site, parent, module, rest)
        if place is None:
            raise _missing(site, _no_part(model, module, names, rest))
        return place
    if not rest:
        return Place(site, module, no_hook=no_hook(parent, names[-1]))
    if len(rest) == 1 and module._parameters.get(rest[0]) is not None:
        return Place(site, module, value=rest[0])
    raise _missing(site, _reason(model, module, names, rest))


def _walk(model: nn.Module, names: list[str]) -> tuple[nn.Module, nn.Module, list[str]]:
    """The deepest module on the path with its parent, and the names that are left."""
    parent = module = model
    for depth, name in enumerate(names):
        child = module._modules.get(name)
        if child is None:
            return parent, module, names[depth:]
        parent, module = module, child
    return parent, module, []


def _resolve_part(site: Site, parent: nn.Module, module: nn.Module, rest: list[str]) -> Place | None:
    """q, k or v: a third of `qkv`, or the separate projection of an attention that has no fused one."""
    if not rest and site.path.endswith("qkv") and isinstance(module, nn.Linear) and module.out_features % 3 == 0:
        if not has_thirds(parent):
            return None
        third = module.out_features // 3
        rows = "qkv".index(site.part) * third, third
        return Place(site, module, rows=rows, no_hook=no_hook(parent, "qkv"))
    if rest == ["qkv"]:
        for name in _SEPARATE[site.part]:
            child = module._modules.get(name)
            if isinstance(child, nn.Linear):
                return Place(site, child)
    return None


def residual(model: nn.Module, site: Site) -> Residual:
    """The ends of the residual connection around an MLP or an attention.

    Args:
        model: a timm `VisionTransformer`.
        site: `blocks.N.mlp` or `blocks.N.attn`, or another block's.

    Raises:
        UnsupportedAdapterError: `missing-site`, or `unsupported-model` for a post-norm, parallel or unknown block.
    """
    names = site.path.split(".")
    around = _AROUND.get(names[-1])
    if len(names) < 2 or around is None or site.part:
        raise _missing(site, "a branch on the residual stream is at a block's mlp or attn, like blocks.N.mlp")
    _, block, rest = _walk(model, names[:-1])
    if rest or block._modules.get(names[-1]) is None:
        raise _missing(site, _reason(model, block, names, rest + names[-1:]))
    what, ends_of = around
    ends = ends_of(block)
    if ends is None:
        kind = type(block).__name__
        text = f"{site}: a {kind} is not known to have a pre-norm residual connection around its {what}"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="expected a pre-norm block of timm")
    return Residual(ends[0], ends[1], width_of(model, block), ends[2], whole=ends[1] is block)


def _no_part(model: nn.Module, module: nn.Module, names: list[str], rest: list[str]) -> str:
    if rest:
        return _reason(model, module, names, rest)
    kind = type(_walk(model, names[:-1])[1]).__name__
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
