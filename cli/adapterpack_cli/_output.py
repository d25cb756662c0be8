"""How results look: JSON for scripts, tables and bars for people, progress on standard error.

rich is imported where something is drawn, because `--json` should not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from adapterpack.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PART_COLOURS = {"adapter": "cyan", "head": "magenta", "metadata": "yellow", "container": "bright_black"}
PART_FILLS = {"adapter": "█", "head": "▓", "metadata": "▒", "container": "░"}
BAR_CELLS = 40


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def console() -> Console:
    """Standard output for people; plain and wide where it is no terminal."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 110
    return Console(highlight=False, width=wide)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """A table with its header underlined and the columns in `right` aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        out.add_column(name, justify="right" if i in right else "left", no_wrap=i != 0, overflow="fold")
    for row in rows:
        out.add_row(*(Text(printable(cell)) for cell in row))
    return out


def size(count: int) -> str:
    """Bytes for people: 812 B, 74.3 KB, 4.7 MB (powers of ten)."""
    if count < 1000:
        return f"{count} B"
    if count < 1_000_000:
        return f"{count / 1000:.1f} KB"
    return f"{count / 1e6:.1f} MB"


def bar(parts: Mapping[str, int], cells: int = BAR_CELLS) -> Text:
    """A bar that shows shares by fill and colour; a part that is there gets at least one cell."""
    from rich.text import Text

    present = {name: count for name, count in parts.items() if count}
    total = sum(present.values()) or 1
    widths = {name: max(1, round(cells * count / total)) for name, count in present.items()}
    largest = max(present, key=lambda name: present[name], default=None)
    if largest:
        widths[largest] += cells - sum(widths.values())
    text = Text()
    for name, width in widths.items():
        text.append(PART_FILLS[name] * width, style=PART_COLOURS[name])
    return text


def legend(parts: Mapping[str, int]) -> Text:
    """What the fills mean, with sizes."""
    from rich.text import Text

    text = Text()
    for name, count in parts.items():
        if count:
            text.append(f"{PART_FILLS[name]} ", style=PART_COLOURS[name])
            text.append(f"{name} {size(count)}   ")
    return text


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error where that is a terminal and there is more than one step."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as shown:
        yield lambda: shown.update(1)


@contextlib.contextmanager
def busy(label: str) -> Iterator[None]:
    """A spinner on standard error for what may take longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(label):
        yield


def notes(lines: Sequence[str]) -> None:
    """Remarks on standard error."""
    for line in lines:
        click.echo(f"note: {printable(line)}", err=True)


def plain(text: str) -> str:
    """Escaped for a terminal and for rich's markup."""
    return printable(text).replace("[", "\\[")
