"""Tables that fit: numbers are never cut, text is folded, columns that can be spared go, and then rows become blocks.

It knows widths in terminal cells, and nothing of what is in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterpack.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_GAP = 2  # cells between columns
Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: its header.
        right: numbers, aligned to the right.
        least: text may be folded down to so many cells; 0: never folded.
        drop: where the terminal is narrow, the column with the lowest goes first; 0: it never goes.
    """

    name: str
    right: bool = False
    least: int = 0
    drop: int = 0


def show(out: Console, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print a table as wide as `out` allows; below that one block a row, with every column in a line of its own."""
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    natural = [max(map(cell_len, (column.name, *(row[i] for row in cells)))) for i, column in enumerate(columns)]
    widths = fitted(columns, natural, out.width)
    if widths is None:
        _show_blocks(out, columns, cells)
    else:
        out.print(_table(columns, cells, widths))


def fitted(columns: Sequence[Column], natural: Sequence[int], room: int) -> dict[int, int] | None:
    """How many cells each column gets that is shown; None where not even those fit that must be shown.

    Args:
        columns: all of them.
        natural: cells of the widest entry of each.
        room: cells of the terminal.
    """
    widths = {i: min(natural[i], column.least or natural[i]) for i, column in enumerate(columns)}
    while (spare := room - sum(widths.values()) - _GAP * (len(widths) - 1)) < 0:
        optional = [i for i in widths if columns[i].drop]
        if not optional:
            return None
        del widths[min(optional, key=lambda i: columns[i].drop)]
    for i in widths:  # text gets what is left, the first column before the others
        more = min(spare, natural[i] - widths[i])
        widths[i] += more
        spare -= more
    return widths


def _table(columns: Sequence[Column], rows: Sequence[Row], widths: dict[int, int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for i, width in widths.items():
        justify = "right" if columns[i].right else "left"
        out.add_column(columns[i].name, justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        out.add_row(*(Text(row[i]) for i in widths))
    return out


def _show_blocks(out: Console, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    from rich.text import Text

    indent = max(len(column.name) for column in columns)
    for row in rows:
        out.print(Text(row[0], style="bold", overflow="fold"))
        for column, cell in zip(columns[1:], row[1:]):
            out.print(Text(f"  {column.name:<{indent}}  {cell}", overflow="fold"))
