"""`adapterpack diff`: two adapters of any form, compared by site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterpack import compare
from adapterpack.stores import shown
from adapterpack_cli import _output
from adapterpack_cli._place import PLACE
from adapterpack_cli._tables import Column, show
from adapterpack_cli._words import settings_of

if TYPE_CHECKING:
    from rich.console import Console

    from adapterpack.packing.differences import BranchDifference, Differences, TensorDifference

COLUMNS = (
    Column("site", least=24),
    Column("method", least=8, drop=2),
    Column("role", least=6),
    Column("a", least=8, drop=4),
    Column("b", least=8, drop=3),
    Column("error", right=True),
    Column("signs equal", right=True, drop=1),
)


@click.command()
@click.argument("a", type=PLACE)
@click.argument("b", type=PLACE)
@click.option("--task", help="Which task of A, where it has several, and of B.")
@click.option("--other-task", help="Which task of B, where it is not called the same.")
@click.option(
    "--backbone", type=PLACE, metavar="NAME_OR_FILE", help="For a source that does not say which tensors were trained."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="What a source does not say, as in pack.")
@click.option("--as", "how", metavar="HOW", help="Of a whole fine-tuned model, what to keep, as in pack.")
@click.option("--all", "everything", is_flag=True, help="List tensors that are equal to the bit, too.")
@click.option("--exit-code", is_flag=True, help="End with 1 where the adapters differ.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(
    a: str, b: str, settings: Sequence[str], how: str | None, everything: bool, exit_code: bool, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compare two adapters of any form: .apk files, and whatever `pack` reads, both also at a URL.

    Errors are relative to A. "delta" is what a branch adds to its weight, scale included. Differences are no error:
    the exit status is 0, unless --exit-code is given.
    """
    said = settings_of(settings, how)
    with _output.busy(f"comparing {Path(shown(a)).name} and {Path(shown(b)).name}"):
        found = compare.diff(a, b, settings=said, **options)
    if as_json:
        _output.print_json(asdict(found))
    else:
        _show(_output.console(), found, everything)
    if exit_code and not (found.identical and found.description.keys() <= {"task"}):
        click.get_current_context().exit(1)


def _show(out: Console, found: compare.Diff, everything: bool) -> None:
    for name, side in (("a", found.a), ("b", found.b)):
        count = _output.counted(side.branches, "branch", "branches")
        classes = "no head" if side.classes is None else _output.counted(side.classes, "class", "classes")
        said = f"{_output.plain(side.task)}, {_output.plain(side.method)}, {count}, {classes}, {side.digest[:19]}"
        out.print(f"[bold]{name}[/] {_output.plain(side.path)}: {said}")
    for line in (*_verdict(found), *_one_sided(found.differences), *_changed_settings(found.differences)):
        out.print(line)
    rows = [row for branch in found.differences.branches for row in _rows(branch, everything)]
    rows += [[site, "all", "delta", "", "", _number(error), ""] for site, error in found.differences.sites.items()]
    rows += [_row("head", "", tensor) for tensor in found.differences.head if everything or not tensor.identical]
    if rows:
        show(out, COLUMNS, rows)


def _verdict(found: compare.Diff) -> Iterable[str]:
    if found.identical:
        yield "the same to the bit" + (", but for what they are called" if found.description else "")
    elif found.same_numbers:
        yield "the same numbers in other forms"
    for name, values in found.description.items():
        yield f"{_output.plain(name)}: {_change(values)}"


def _one_sided(inner: Differences) -> Iterable[str]:
    for letter, branches, head in (("a", inner.only_a, inner.head_only_a), ("b", inner.only_b, inner.head_only_b)):
        yield from (f"only in {letter}: {_output.plain(name)}" for name in branches)
        yield from (f"only in {letter}: head {_output.plain(role)}" for role in head)
    for branch in inner.branches:
        for letter, roles in (("a", branch.only_a), ("b", branch.only_b)):
            yield from (f"only in {letter}: {_output.plain(f'{branch.site} {role}')}" for role in roles)


def _changed_settings(inner: Differences) -> Iterable[str]:
    for branch in inner.branches:
        for setting, values in branch.settings.items():
            yield f"{_output.plain(f'{branch.site} {setting}')}: {_change(values)}"


def _rows(branch: BranchDifference, everything: bool) -> Iterable[list[str]]:
    for tensor in branch.tensors:
        if everything or not tensor.identical:
            yield _row(branch.site, branch.method, tensor)
    if branch.delta_error is not None and (everything or not branch.identical):
        yield [branch.site, branch.method, "delta", "", "", _number(branch.delta_error), ""]


def _row(site: str, method: str, tensor: TensorDifference) -> list[str]:
    forms = [f"{_form(form)} {'×'.join(map(str, shape))}" for form, shape in zip(tensor.forms, tensor.shapes)]
    signs = "" if tensor.same_signs is None else f"{tensor.same_signs:.2%}"
    return [site, method, tensor.role, *forms, _number(tensor.error), signs]


def _form(form: Any) -> str:
    if "sparse" in form:
        return f"sparse {_form(form['sparse'])}"
    if "dtype" in form:
        return str(form["dtype"])
    return f"{form['bits']} bit" + (f"/{form['group']}" if form["group"] else "")


def _number(error: float | None) -> str:
    return "–" if error is None else "0" if error == 0 else f"{error:.4f}" if error >= 0.0001 else f"{error:.1e}"


def _change(values: tuple[Any, Any]) -> str:
    """Both values; of two lists of one length how many entries differ, because class names may be many."""
    one, other = values
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other) > 3:
        changed = [(a, b) for a, b in zip(one, other) if a != b]
        return f"{len(changed)} of {len(one)} differ, first {_short(changed[0][0])} → {_short(changed[0][1])}"
    return f"{_short(one)} → {_short(other)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else str(value)
    return _output.plain(text if len(text) <= 60 else f"{text[:59]}…")
