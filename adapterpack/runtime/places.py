"""Where a site is in a live model: the module, the parameters, and for q, k and v the rows of the fused projection.

It reads a model and never changes one, and it knows nothing of methods.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from adapterpack.adapter import Site
from adapterpack.errors import Reason, UnsupportedAdapterError
from adapterpack.runtime.backbone import is_prenorm_block

HEADS = ("head", "head_dist")
_SEPARATE = {
    "q": ("q_proj", "q", "to_q", "query"),
    "k": ("k_proj", "k", "to_k", "key"),
    "v": ("v_proj", "v", "to_v", "value"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A site found in a model.

    Attributes:
        site: as the adapter names it.
        module: holds the parameters; its output is the site's.
        value: the attribute's name where the site is a bare parameter of `module`, else "".
        rows: (start, length) of the site in a fused projection's output, or None for all of it.
    """

    site: Site
    module: nn.Module
    value: str = ""
    rows: tuple[int, int] | None = None

    def name(self, role: str) -> str:
        """The attribute of `module` that a role ("weight", "bias", "value") stands for."""
        return self.value if role == "value" else role

    def tensor(self, role: str) -> Tensor | None:
        """The site's rows of a parameter, a view, or None where the module has no such parameter."""
        return self.view(self.module._parameters.get(self.name(role))) if self.has(role) else None

    def has(self, role: str) -> bool:
        """Whether the module has the parameter that a role stands for."""
        return (role == "value") == bool(self.value) and self.module._parameters.get(self.name(role)) is not None

    def view(self, parameter: Tensor | None) -> Tensor | None:
        """The site's rows of a tensor shaped like the whole parameter."""
        if parameter is None or self.rows is None:
            return parameter
        return parameter.narrow(0, *self.rows)

    def shape(self, role: str) -> tuple[int, ...] | None:
        """The shape that a role must have here; a linear layer without a bias still has the bias's shape."""
        if (role == "value") != bool(self.value):
            return None
        found: Tensor | None = self.module._parameters.get(self.name(role))
        if found is None and role == "bias" and isinstance(self.module, nn.Linear):
            found = self.module.weight[:, 0]
        if found is None:
            return None
        return tuple(found.shape) if self.rows is None else (self.rows[1], *found.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Where a branch beside the MLP reads and adds: the input of `norm`, the output of `end`."""

    norm: nn.Module
    end: nn.Module
    width: int


def resolve(model: nn.Module, site: Site) -> Place:
    """Find a site.

    Args:
        model: a timm `VisionTransformer`.
        site: `blocks.3.attn.qkv[q]`, `norm`, `cls_token`, …

    Raises:
        UnsupportedAdapterError: `missing-site`.
    """
    names = site.path.split(".")
    if names[0] in HEADS:
        raise _missing(site, "the classifier is no site: it comes as the task's head")
    module, rest = _walk(model, names)
    if site.part:
        place = _resolve_part(site, module, rest)
        if place is None:
            why = "only an attention's qkv has q, k and v rows" if not rest else _reason(model, module, names, rest)
            raise _missing(site, why)
        return place
    if not rest:
        return Place(site, module)
    if len(rest) == 1 and module._parameters.get(rest[0]) is not None:
        return Place(site, module, value=rest[0])
    raise _missing(site, _reason(model, module, names, rest))


def _walk(model: nn.Module, names: list[str]) -> tuple[nn.Module, list[str]]:
    """The deepest module on the path, and the names that are left."""
    module = model
    for depth, name in enumerate(names):
        child = module._modules.get(name)
        if child is None:
            return module, names[depth:]
        module = child
    return module, []


def _resolve_part(site: Site, module: nn.Module, rest: list[str]) -> Place | None:
    """q, k or v: a third of `qkv`, or the separate projection of an attention that has no fused one."""
    if not rest and site.path.endswith("qkv") and isinstance(module, nn.Linear) and module.out_features % 3 == 0:
        third = module.out_features // 3
        return Place(site, module, rows=("qkv".index(site.part) * third, third))
    if rest == ["qkv"]:
        for name in _SEPARATE[site.part]:
            child = module._modules.get(name)
            if isinstance(child, nn.Linear):
                return Place(site, child)
    return None


def residual(model: nn.Module, site: Site) -> Residual:
    """The ends of the MLP's residual connection.

    Args:
        model: a timm `VisionTransformer`.
        site: `blocks.N.mlp`.

    Raises:
        UnsupportedAdapterError: `missing-site`, or `unsupported-model` for a post-norm or parallel block.
    """
    names = site.path.split(".")
    if len(names) != 3 or names[0] != "blocks" or names[2] != "mlp" or site.part:
        raise _missing(site, "a branch beside the MLP is at blocks.N.mlp")
    blocks = model._modules.get("blocks")
    block = blocks._modules.get(names[1]) if blocks is not None else None
    if block is None:
        raise _missing(site, _reason(model, model, names, names[1:]))
    if not is_prenorm_block(block):
        text = f"{site}: a {type(block).__name__} has no residual connection around norm2 and mlp alone"
        raise UnsupportedAdapterError(text, Reason.UNSUPPORTED_MODEL, hint="expected timm's pre-norm Block")
    norm, end = block._modules["norm2"], block._modules["drop_path2"]
    if norm is None or end is None:  # timm's Block always sets them; somebody deleted one
        raise _missing(site, "the block has lost norm2 or drop_path2")
    return Residual(norm, end, int(model.embed_dim))  # type: ignore[arg-type]


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
