"""Imports point downward, siblings leave each other alone, and each outside package has its owners.

Every import statement counts: at module level, inside functions, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Top to bottom; a module may import only from the sets below its own, and from its own package.
LAYERS: list[set[str]] = [
    {"adapterpack_cli"},
    {"adapterpack"},  # __init__.py alone: the public names
    {"adapterpack.exchange", "adapterpack.transfer", "adapterpack.compare"},
    {"adapterpack.api", "adapterpack._arguments"},
    {"adapterpack.train", "adapterpack.serving"},
    {"adapterpack.runtime"},
    {"adapterpack.packing", "adapterpack.card", "adapterpack.converters"},
    {"adapterpack.codecs", "adapterpack.methods", "adapterpack.container"},
    {"adapterpack.adapter", "adapterpack.quantize"},
    {"adapterpack.stacks"},
    {"adapterpack.tensors"},
    {"adapterpack._scratch"},
    {
        "adapterpack.codebooks",
        "adapterpack.bits",
        "adapterpack._files",
        "adapterpack._registry",
        "adapterpack._walk",
        "adapterpack._outputs",
    },
    {"adapterpack.stores"},
    {"adapterpack.errors"},
]

# Which modules may import an outside package; a package that is not listed is not a dependency.
OWNERS: dict[str, tuple[str, ...]] = {
    "click": ("adapterpack_cli",),
    "rich": ("adapterpack_cli",),
    "torch": ("adapterpack.runtime", "adapterpack.train", "adapterpack.converters.checkpoint"),
    "huggingface_hub": ("adapterpack.runtime.backbone", "adapterpack.stores"),  # timm's own dependency
    "timm": ("adapterpack.runtime.backbone", "adapterpack.train"),
    "accelerate": ("adapterpack.train.devices",),  # several devices; asked for by name when it is missing
    "PIL": ("adapterpack.runtime.images", "adapterpack.train"),
    "safetensors": ("adapterpack.converters", "adapterpack.runtime", "adapterpack.train"),
    "gguf": ("adapterpack.converters.gguf",),
    "ray": ("adapterpack.serving",),  # asked for by name when it is missing, as are these three that come with it
    "aiohttp": ("adapterpack.serving",),
    "prometheus_client": ("adapterpack.serving.metrics",),
    "pyarrow": ("adapterpack.serving",),
    "zstandard": ("adapterpack.codecs.zstd",),
    "zlib_ng": ("adapterpack.container.digest",),
    "constriction": ("adapterpack.codecs._range",),
    "fsspec": ("adapterpack.stores",),
    "numpy": (
        "adapterpack.adapter", "adapterpack.bits", "adapterpack.codebooks", "adapterpack.codecs",
        "adapterpack.container", "adapterpack.converters", "adapterpack.methods.consolidator", "adapterpack.packing",
        "adapterpack.quantize", "adapterpack.runtime", "adapterpack.stacks", "adapterpack.tensors", "adapterpack.train",
    ),
}  # fmt: skip
NOT_OURS_TO_IMPORT = {"tests", "spec", "fixtures", "cli"}


def modules() -> dict[str, Path]:
    found = {}
    for base, package in ((ROOT, "adapterpack"), (ROOT / "cli", "adapterpack_cli")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> int | None:
    """The set that a module belongs to; the bare package is its `__init__` alone."""
    for number, names in enumerate(LAYERS):
        if any(module == name if name == "adapterpack" else inside(module, name) for name in names):
            return number
    return None


def unit_of(module: str) -> str:
    """The member of the layer table that holds a module."""
    number = layer_of(module)
    assert number is not None
    return next(name for name in LAYERS[number] if inside(module, name))


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    return tuple(found_in(MODULES[module]))


def found_in(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, with its line; `from package import module` names the module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or ""), node.lineno
                continue
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module), node.lineno


def ours(name: str) -> bool:
    return inside(name, "adapterpack") or inside(name, "adapterpack_cli")


def complaint(module: str, target: str) -> str | None:
    """What is wrong with one import, or None."""
    if target.startswith("."):
        return "imports relatively"
    if not ours(target):
        return outside_complaint(module, target)
    if target == "adapterpack" and not inside(module, "adapterpack_cli"):
        return "imports the bare package"
    if target not in MODULES:
        return f"imports {target}, which does not exist"
    mine, theirs = layer_of(module), layer_of(target)
    if mine is None or theirs is None:
        return "has no layer" if mine is None else f"imports {target}, which has no layer"
    if theirs > mine or (theirs == mine and unit_of(module) == unit_of(target)):
        return None
    return f"imports {'its sibling' if theirs == mine else 'upward'} {target}"


def outside_complaint(module: str, target: str) -> str | None:
    top = target.split(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if top in NOT_OURS_TO_IMPORT:
        return f"imports {top}, which is not installed with the package"
    if top not in OWNERS:
        return f"imports {top}, which is no dependency"
    if not any(inside(module, owner) for owner in OWNERS[top]):
        return f"imports {top}, which belongs to {', '.join(OWNERS[top])}"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    assert layer_of(module) is not None, f"{module} has no layer: add it to LAYERS"
    wrong = [f"line {line}: {told}" for target, line in imports(module) if (told := complaint(module, target))]
    assert not wrong, f"{module}: " + "; ".join(wrong)


@pytest.mark.parametrize(
    ("module", "target", "told"),
    [
        ("adapterpack.errors", "adapterpack.bits", "upward"),
        ("adapterpack.bits", "adapterpack.codebooks", "sibling"),
        ("adapterpack.codecs.raw", "adapterpack.container.limits", "sibling"),
        ("adapterpack.packing.plan", "adapterpack.converters", "sibling"),
        ("adapterpack.packing.plan", "adapterpack.api", "upward"),
        ("adapterpack.packing.plan", "adapterpack", "bare package"),
        ("adapterpack.packing.plan", "adapterpack.nothing", "does not exist"),
        ("adapterpack.packing.plan", "torch.nn", "belongs to"),
        ("adapterpack.converters.petl_vit", "torch", "belongs to"),
        ("adapterpack_cli.inspect", "numpy", "belongs to"),
        ("adapterpack_cli.inspect", "tests.factories", "not installed"),
        ("adapterpack.bits", "yaml", "no dependency"),
        ("adapterpack.bits", ".errors", "relatively"),
        ("adapterpack.packing.plan", "adapterpack.errors", None),
        ("adapterpack.packing.plan", "adapterpack.packing.check", None),
        ("adapterpack_cli.inspect", "adapterpack", None),
    ],
)
def test_the_rule_itself(module: str, target: str, told: str | None) -> None:
    found = complaint(module, target)
    assert (found is None) if told is None else (found is not None and told in found)


def test_hidden_imports_count(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    import torch\nif TYPE_CHECKING:\n    from adapterpack.codecs import raw, CODECS\n")
    assert [name for name, _ in found_in(path)] == ["torch", "adapterpack.codecs.raw", "adapterpack.codecs"]


def test_no_cycles() -> None:
    """Inside a package too, where the layer table says nothing."""
    graph = {name: {target for target, _ in imports(name) if target in MODULES} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_late_table_points_downward() -> None:
    import adapterpack

    for target in adapterpack._LATE.values():
        assert target in MODULES and complaint("adapterpack", target) is None


def test_every_layer_exists() -> None:
    assert [name for names in LAYERS for name in names if name not in MODULES] == []
