"""`make families`: every family of timm, built small with random weights, and every method tried in it.

Writes docs/backbones.md. LoRA is compared with timm's own forward after `weight += up @ down` on every linear layer,
and AdaptFormer with a sum at its block's output; of the other methods both ways in, folded and beside, must agree.
After each, the model must be bit for bit what it was.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn
from torch.nn import functional

from adapterpack.adapter import Adapter, Branch, Head, Site
from adapterpack.errors import AdapterPackError
from adapterpack.runtime.backbone import randomise
from adapterpack.runtime.families import (
    blocks_of,
    classifier_path,
    features_of,
    has_thirds,
    require_supported,
    width_of,
)
from adapterpack.runtime.load import load_adapter
from adapterpack.runtime.places import resolve
from adapterpack.tensors import Dense, Sparse
from adapterpack.train.recipe import RECIPES
from adapterpack.train.trainee import Trainee

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
TOLERANCE = 2e-3  # of the largest logit; some families are a hundred layers deep
SIDE = 64  # of images, where a model takes such small ones
CLASSES = 5
# words of names of small variants, smallest first; the first few that they find are measured
SMALL = ("test_", "zepto", "atto", "femto", "nano", "pico", "xxtiny", "xxs", "xs", "_t0", "tiny", "_ti", "_b0", "_s0",
         "small", "_s", "base")  # fmt: skip
Json = dict[str, Any]


@dataclass
class Row:
    """What was found of one family."""

    family: str
    model: str = ""
    kind: str = ""
    parameters: int = 0
    refused: str = ""
    linear: int = 0
    folded: str = "–"
    beside: str = "–"
    parts: str = "–"
    adaptformer: str = "–"
    others: list[str] = field(default_factory=list)
    trains: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)


def smallest(family: str) -> str:
    """The family's smallest variant among those whose names sound small."""
    names = timm.list_models(module=family)
    ranked = sorted(names, key=lambda name: next((i for i, word in enumerate(SMALL) if word in name), len(SMALL)))
    sizes = {}
    for name in ranked[:4]:
        with torch.device("meta"):
            try:
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception:
                continue
    return min(sizes, key=lambda name: sizes[name]) if sizes else ranked[0]


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, two blocks and small images where its constructor takes such arguments, and an
    image that it takes."""
    refused: Exception | None = None
    for asked in ({"img_size": SIDE, "depth": 2}, {"img_size": SIDE}, {"depth": 2}, {}):
        kwargs: Json = {"num_classes": CLASSES, **asked}
        try:
            with torch.device("meta"):
                model = timm.create_model(name, **kwargs)
            require_supported(model)
            model = timm.create_model(name, **kwargs)
            fill(model)
            return model, image_for(model)
        except AdapterPackError:
            raise
        except Exception as error:  # an argument that this constructor, or its forward pass, does not take
            refused = error
    raise RuntimeError(f"timm cannot make {name}: {refused}")


def fill(model: nn.Module) -> None:
    """Random weights that differ enough for every one to matter."""
    randomise(model, 0)
    with torch.no_grad():
        for number, value in enumerate(model.parameters()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) * 0.02)
    model.requires_grad_(False).eval()


def image_for(model: nn.Module) -> torch.Tensor:
    """A small image where the model takes one, else one of its own size."""
    size = resolve_model_data_config(model)["input_size"]
    for side in (SIDE, size[-1]):
        image = torch.rand(1, size[0], side, side, generator=torch.Generator().manual_seed(1))
        try:
            with torch.inference_mode():
                model(image)
            return image
        except Exception as error:  # whatever families raise at another size
            failed = error
    raise failed


def dense(*shape: int, spread: float = 0.2) -> Dense:
    return Dense((np.random.default_rng(shape).standard_normal(shape) * spread).astype(np.float32))


class Tried:
    """One model, an image, and what it gives without an adapter."""

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        self.model, self.image = model, image
        self.before = {name: value.clone() for name, value in model.state_dict().items()}
        self.head = Head(dense(CLASSES, features_of(model)), dense(CLASSES))
        with load_adapter(self.task([]), model, check_fingerprint=False):
            self.plain = self.logits()

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(self.image)

    def task(self, branches: list[Branch]) -> Adapter:
        return Adapter("toy", "test", tuple(branches), self.head)

    def loaded(self, branches: list[Branch], fold: Any) -> torch.Tensor:
        """The logits with these branches, the model taken back to the bit."""
        with load_adapter(self.task(branches), self.model, fold=fold, check_fingerprint=False):
            found = self.logits()
        now = self.model.state_dict()
        if any(not torch.equal(now[name], value) for name, value in self.before.items()):
            raise AssertionError("unloading did not restore the model")
        return found

    def says(self, found: torch.Tensor, expected: torch.Tensor) -> str:
        """ "" where they agree and differ from what the model gives without an adapter, else what is wrong."""
        scale = expected.abs().max()
        if not torch.isfinite(expected).all():
            return "random weights overflow"
        if (found - expected).abs().max() > TOLERANCE * scale:
            return "another result than by hand"
        if (found - self.plain).abs().max() < 1e-6 * scale:
            return "no effect on the logits"
        return ""


def lora_branch(model: nn.Module, site: str, rank: int = 2) -> Branch:
    outward, inward = resolve(model, Site.parse(site)).shape("weight") or (0, 0)
    return Branch(Site.parse(site), "lora", {"scale": 0.5}, {"down": dense(rank, inward), "up": dense(outward, rank)})


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    left_out = classifier_path(model)
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear" and n != left_out}


def try_lora(tried: Tried, row: Row) -> None:
    """Every linear layer at once, folded and beside; layer by layer where that fails."""
    model, found = tried.model, linears(tried.model)
    row.linear = len(found)
    if not found:
        row.why["lora"] = "it has no linear layers: convolutions are refused by name"
        return
    branches = [lora_branch(model, name) for name in found]

    def by_hand(chosen: list[Branch]) -> torch.Tensor:
        for branch in chosen:
            down, up = (torch.tensor(branch.tensors[role].dense()) for role in ("down", "up"))
            found[branch.site.path].weight.add_(0.5 * up @ down)
        with load_adapter(tried.task([]), model, check_fingerprint=False):
            out = tried.logits()
        model.load_state_dict(tried.before)
        return out

    expected = by_hand(branches)
    for fold, name in (("auto", "folded"), ("never", "beside")):
        wrong = tried.says(tried.loaded(branches, fold), expected)
        setattr(row, name, f"{len(branches)}" if not wrong else "–")
        if wrong:
            row.why[f"lora {name}"] = wrong


def try_parts(tried: Tried, row: Row) -> None:
    model = tried.model
    attentions = [n for n, m in model.named_modules() if isinstance(m._modules.get("qkv"), nn.Linear)]
    known = [name for name in attentions if has_thirds(model.get_submodule(name))]
    separate = [n for n, m in model.named_modules() if isinstance(m._modules.get("q_proj"), nn.Linear)]
    if not attentions and not separate:
        return
    branches = [lora_branch(model, f"{name}.qkv[{part}]") for name in known or separate for part in "qv"]
    if not branches:
        kinds = ", ".join(sorted({type(model.get_submodule(name)).__name__ for name in attentions}))
        row.why["q, k, v"] = f"rows of {kinds}.qkv are not known to be thirds"
        return
    wrong = tried.says(tried.loaded(branches, "never"), tried.loaded(branches, "auto"))
    row.parts = str(len(known or separate)) if not wrong else "–"
    if wrong:
        row.why["q, k, v"] = wrong


def adaptformer_branch(model: nn.Module, name: str, block: nn.Module) -> Branch:
    width = width_of(model, block)
    return Branch(Site(f"{name}.mlp"), "adaptformer", {"scale": 0.5}, {"down": dense(2, width), "up": dense(width, 2)})


def sum_by_hand(block: nn.Module, branch: Branch) -> Callable[[], None]:
    """Let a block add the branch to what it gives; the result takes that out again."""
    down, up = (torch.tensor(branch.tensors[role].dense()) for role in ("down", "up"))
    forward, seen = block.forward, []
    norm = block._modules.get("norm2")

    def gained(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * functional.relu(x @ down.T) @ up.T

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = forward(x, *args, **kwargs)
        if norm is None:
            return out + gained(x.movedim(1, -1)).movedim(-1, 1)
        more = gained(seen.pop())
        return out + (more.transpose(1, 2) if out.ndim == 4 != more.ndim and out.shape[1] == len(up) else more).reshape(
            out.shape
        )

    block.forward = run
    if norm is not None:
        inner = norm.forward
        norm.forward = lambda x: (seen.append(x), inner(x))[1]

    def back() -> None:
        del block.forward
        if norm is not None:
            del norm.forward

    return back


def try_adaptformer(tried: Tried, row: Row) -> None:
    model, found = tried.model, dict(blocks_of(tried.model))
    if not found:
        kinds = Counter(type(m).__name__ for m in model.modules() if m._modules.get("mlp") is not None)
        what = f"{', '.join(kinds)}: no pre-norm residual connection around the MLP is known" if kinds else "no MLPs"
        row.why["adaptformer"] = what
        return
    branches = [adaptformer_branch(model, name, block) for name, block in found.items()]
    backs = [sum_by_hand(block, branch) for block, branch in zip(found.values(), branches)]
    try:
        with load_adapter(tried.task([]), model, check_fingerprint=False):
            expected = tried.logits()
    finally:
        for back in backs:
            back()
    wrong = tried.says(tried.loaded(branches, "auto"), expected)
    row.adaptformer = str(len(found)) if not wrong else "–"
    if wrong:
        row.why["adaptformer"] = wrong


def others(model: nn.Module) -> Iterator[tuple[str, Branch]]:
    """One branch of each other method, at the first linear layer of the last block or so."""
    found = linears(model)
    inside = {n: m for n, m in found.items() if n.endswith(("fc1", "fc2", "qkv", "proj", "reduction"))} or found
    if inside:
        name, layer = list(inside.items())[len(inside) // 2]
        outward, inward = layer.weight.shape
        yield from at_linear(name, outward, inward)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.weight is not None]
    if norms:
        size = model.get_submodule(norms[-1]).weight.shape[0]
        yield "replace", Branch(Site(norms[-1]), "replace", {}, {"weight": dense(size), "bias": dense(size)})
        yield (
            "affine",
            Branch(Site(norms[-1]), "affine", {"tap": "output"}, {"factor": dense(size), "shift": dense(size)}),
        )


def at_linear(name: str, outward: int, inward: int) -> Iterator[tuple[str, Branch]]:
    site, pair = Site(name), {"down": dense(2, inward), "up": dense(outward, 2)}
    yield "dora", Branch(site, "dora", {"scale": 0.5}, {**pair, "magnitude": dense(outward, spread=1.0)})
    entries = np.arange(0, outward * inward, 7, dtype=np.int64)
    yield "sparse", Branch(site, "sparse", {}, {"weight": Sparse((outward, inward), entries, dense(len(entries)))})
    groups = next((g for g in (8, 4, 2) if outward % g == 0 and inward % g == 0), 1)
    weight = dense(outward, inward // groups)
    yield "consolidator", Branch(site, "consolidator", {"groups": groups, "reorder": True}, {"weight": weight})
    tensors = {"down": dense(2, outward), "up": dense(outward, 2)}
    yield "adapter", Branch(site, "adapter", {"nonlinearity": "gelu", "scale": 0.5, "tap": "output"}, tensors)


def try_others(tried: Tried, row: Row) -> None:
    for name, branch in others(tried.model):
        try:
            expected = tried.loaded([branch], "auto")
            wrong = tried.says(tried.loaded([branch], "never"), expected)
        except AdapterPackError as error:
            wrong = error.message
        if wrong:
            row.why[name] = wrong
        else:
            row.others.append(name)


def try_training(tried: Tried, row: Row) -> None:
    """A step of gradient descent, and the adapter that comes out of it loaded again."""
    model = tried.model
    for method in ("lora", "adaptformer"):
        try:
            trainee = Trainee(model, replace(RECIPES[method], bits=32, dim=2, scale=1.0, drop_path=0.0), CLASSES)
        except AdapterPackError as error:
            row.why[f"training {method}"] = error.message
            continue
        trainee.train()
        optimiser = torch.optim.SGD(list(trainee.trained().values()), 0.1)
        images = self_and_mirror(tried.image)
        functional.cross_entropy(trainee(images), torch.tensor([0, 1])).backward()
        optimiser.step()
        trainee.eval()
        with torch.no_grad():
            expected = trainee(tried.image)
        task = trainee.adapter("toy")
        trainee.close()
        with load_adapter(task, model, check_fingerprint=False):
            agrees = (tried.logits() - expected).abs().max() <= TOLERANCE * expected.abs().max()
        if agrees and all(torch.equal(value, tried.before[name]) for name, value in model.state_dict().items()):
            row.trains.append(method)
        else:
            row.why[f"training {method}"] = "the trained adapter gives other logits when it is loaded"


def self_and_mirror(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([image, image.flip(-1)])


def examine(family: str) -> Row:
    row = Row(family, smallest(family))
    try:
        model, image = build(row.model)
    except AdapterPackError as error:
        row.refused = str(error)
        return row
    except Exception as error:
        row.refused = f"timm cannot make it here: {type(error).__name__}"
        return row
    row.kind, row.parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
    tried = Tried(model, image)
    for attempt in (try_lora, try_parts, try_adaptformer, try_others, try_training):
        try:
            attempt(tried, row)
        except AdapterPackError as error:
            row.why[attempt.__name__.removeprefix("try_")] = error.message
    return row


def page(rows: list[Row]) -> str:
    working = [row for row in rows if not row.refused]
    refused = [row for row in rows if row.refused]
    lines = [INTRO.format(timm=timm.__version__, torch=torch.__version__.split("+")[0], count=len(rows)).strip(), ""]
    lines += [
        "| family | tried | linear layers | LoRA folded | LoRA beside | attentions with q, k, v | AdaptFormer "
        "| others | trains |"
    ]
    lines += ["|---|---|--:|--:|--:|--:|--:|---|---|"]
    for row in working:
        cells = [row.family, f"{row.model} ({row.parameters / 1e6:.1f} M)", str(row.linear), row.folded, row.beside]
        cells += [row.parts, row.adaptformer, ", ".join(row.others) or "–", ", ".join(row.trains) or "–"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Why not", "", "| family | what | why not |", "|---|---|---|"]
    lines += [f"| {row.family} | {what} | {why} |" for row in working for what, why in row.why.items()]
    lines += ["", "## Families that are refused", "", "| family | tried | why not |", "|---|---|---|"]
    lines += [f"| {row.family} | {row.model} | {row.refused} |" for row in refused]
    return "\n".join(lines) + "\n"


INTRO = """
# Backbones

Which families of timm take which method. Made by `make families`, which builds a small variant of each of the {count}
families of timm {timm} (torch {torch}) with random weights, tries everything in it, and writes this page; numbers count
layers or blocks at which it works.

- **LoRA folded**: in every linear layer but the classifier at once; the logits are those of timm's own forward after
  `weight += up @ down`. **LoRA beside**: the same with `fold="never"`, which leaves the backbone's weights alone. Where
  a model reads a layer's weight without calling the layer (BEiT, EVA, Swin V2: `qkv` with biases for q and v), another
  weight stands in for it until the adapter is unloaded.
- **Attentions with q, k, v**: sites like `layers.0.blocks.1.attn.qkv[q]`. Only where the rows of `qkv` are known to
  be q, k and v, each as a whole, or where there are `q_proj`, `k_proj` and `v_proj`. Elsewhere all of `qkv` is a site.
- **AdaptFormer**: beside the MLP of every pre-norm block, x + MLP(norm2(x)) + s·up·ReLU(down·x). A ConvNeXt block is
  x + MLP(norm(conv(x))): there the branch runs beside all of it. Blocks that normalise after the MLP (Swin V2), or
  are not known, are refused by name.
- **Others**: one branch of each, the same logits folded and beside. LoRA needs linear layers: convolutions, 1×1 ones
  too, are refused by name.
- **Trains**: `adapterpack train`, one step, and what comes out loaded again: LoRA on q and v (in families without such
  attentions, on the layers of the MLPs), AdaptFormer beside every MLP. Where `qkv` is read without being called, the
  trained product goes into the weight, and there is no dropout on the hidden vector. Families with batch norms are not
  trained, because their statistics would change.

A model is taken if it is timm's, has one linear classifier (at `head`, `head.fc`, `classifier` or `fc`) and a linear
layer or a known block beside it. Sites are timm's own module paths. `adapterpack.AdapterPool` and the methods of
`--method` other than `lora`, `adaptformer`, `linear`, `bias` and `full` take plain `VisionTransformer`s only.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="a family; prints instead of writing the page")
    arguments = parser.parse_args()
    rows = []
    for family in arguments.only or sorted(timm.list_modules()):
        rows.append(examine(family))
        print(family, rows[-1].model, rows[-1].refused or "tried", file=sys.stderr, flush=True)
    if arguments.only:
        print(page(rows))
    else:
        PAGE.write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
