"""Small modules, small functions, and a few habits that a linter does not see."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "adapterpack").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
PARSED = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in FILES}


def function_lengths() -> dict[str, int]:
    """Lines of each function, without its docstring."""
    found = {}
    for name, tree in PARSED.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                said = text.count("\n") + 1 if text is not None else 0
                found[f"{name}:{node.lineno} {node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1 - said
    return found


def test_modules_are_small() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lengths.items() if count > 300} == {}
    assert median(lengths.values()) <= 110


def test_functions_are_small() -> None:
    lengths = function_lengths()
    assert {name: count for name, count in lengths.items() if count > 50} == {}
    ordered = sorted(lengths.values())
    assert ordered[int(0.9 * len(ordered))] <= 25


# stores raise whatever their protocol's library raises; the catch is around those calls
FOREIGN_CALLS = {"adapterpack/stores/_base.py"}


@pytest.mark.parametrize("name", PARSED)
def test_habits(name: str) -> None:
    """A module says what it is for; no assert, no broad except, no print, no mutable default."""
    tree = PARSED[name]
    wrong = [f"line {node.lineno}: {told}" for node in ast.walk(tree) if (told := bad_habit(node))]
    if name in FOREIGN_CALLS:
        wrong = [told for told in wrong if "broad except" not in told]
    if ast.get_docstring(tree) is None and tree.body:
        wrong.append("no module docstring")
    assert not wrong, "; ".join(wrong)


def bad_habit(node: ast.AST) -> str | None:
    if isinstance(node, ast.Assert):
        return "assert is no input check"
    if isinstance(node, ast.ExceptHandler) and is_broad(node):
        return "a broad except that does not raise again"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "eval", "exec"):
        return node.func.id
    if isinstance(node, ast.FunctionDef) and any(
        isinstance(default, ast.List | ast.Dict | ast.Set) for default in (*node.args.defaults, *node.args.kw_defaults)
    ):
        return "a mutable default"
    return None


def is_broad(node: ast.ExceptHandler) -> bool:
    named = isinstance(node.type, ast.Name) and node.type.id not in ("Exception", "BaseException")
    last = node.body[-1]
    return not (named or isinstance(node.type, ast.Tuple | ast.Attribute)) and not (
        isinstance(last, ast.Raise) and last.exc is None
    )


@pytest.mark.parametrize("source", ["assert x", "try:\n  x\nexcept Exception:\n  x", "print(1)", "def f(x=[]): ..."])
def test_the_rule_itself(source: str) -> None:
    assert any(bad_habit(node) for node in ast.walk(ast.parse(source)))
    assert not any(bad_habit(node) for node in ast.walk(ast.parse("try:\n  x\nexcept BaseException:\n  y\n  raise")))
