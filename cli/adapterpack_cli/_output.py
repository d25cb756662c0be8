"""How results look: JSON for scripts, tables and bars for people, progress on standard error.

rich is imported where something is drawn, because `--json` should not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from adapterpack.errors import AdapterPackError, printable
from adapterpack_cli import _streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PART_COLOURS = {"adapter": "cyan", "head": "magenta", "metadata": "yellow", "container": "bright_black"}
CURVE = "▁▂▃▄▅▆▇█"
PART_FILLS = {"adapter": "█", "head": "▓", "metadata": "▒", "container": "░"}
BAR_CELLS = 40


_NO_TERMINAL = 1_000_000  # cells: lines that programs read are never wrapped
_LONE = re.compile("[\ud800-\udfff]")
# how a person at a shell writes what an error of the library says in Python
_OPTIONS = {"--force (force=True)": "--force", 'fold="auto"': "--fold auto"}


def print_json(value: Any) -> None:
    """One JSON object on standard output; bytes of a path that are no UTF-8 are shown as `\\udcff`."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    text = _LONE.sub(lambda match: f"\\\\u{ord(match[0]):04x}", text)
    if not _streams.is_unicode(sys.stdout):
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text)


def told(error: AdapterPackError) -> str:
    """An error as the command line says it."""
    hint = error.hint
    for python, words in _OPTIONS.items():
        hint = hint.replace(python, words)
    return str(error).removesuffix(error.hint) + hint if error.hint else str(error)


def counted(count: int, one: str, several: str = "") -> str:
    """ "1 task", "2 tasks"; `several` where the plural takes more than an s."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def console() -> Console:
    """Standard output for people; plain, and without an end to its lines, where it is no terminal."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else _NO_TERMINAL)


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


def curve(values: Sequence[float]) -> str:
    """Values from left to right, as columns between the lowest and the highest."""
    low, high, steps = min(values), max(values), len(CURVE) - 1
    return "".join(CURVE[round(steps * (value - low) / (high - low)) if high > low else steps] for value in values)


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
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error where that is a terminal and there is more than one step.

    What it gives is called after each step, or with a number after so many.
    """
    if total < 2 or not sys.stderr.isatty():
        yield lambda count=1: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as shown:
        yield lambda count=1: shown.update(count)


@contextlib.contextmanager
def busy(label: str) -> Iterator[None]:
    """A spinner on standard error for what may take longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    spinner = "dots" if _streams.is_unicode(sys.stderr) else "line"
    with Console(stderr=True).status(Text(printable(label)), spinner=spinner):
        yield


def notes(lines: Sequence[str]) -> None:
    """Remarks on standard error."""
    for line in lines:
        click.echo(f"note: {printable(line)}", err=True)


def plain(text: str) -> str:
    """Escaped for a terminal and for rich's markup."""
    from rich.markup import escape

    return escape(printable(text))
