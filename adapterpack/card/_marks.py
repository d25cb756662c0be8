"""Our part of an author's text: between two marks, each on a line of its own, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Sequence

from adapterpack.errors import CallError, Reason

NAME = "README.md"
BODY = ("<!-- adapterpack: begin (written by `adapterpack push`) -->", "<!-- adapterpack: end -->")
FRONT = ("# adapterpack: begin (written by `adapterpack push`)", "# adapterpack: end")


def split(text: str, tail: str) -> tuple[str, list[str], str, list[str]]:
    """The line that opens the front matter, its lines, the line that closes it, and the lines after that."""
    lines = text.split("\n")
    if lines[0].lstrip("\ufeff").rstrip() == "---":
        for number, line in enumerate(lines[1:], 1):
            if line.rstrip() == "---":
                return lines[0], lines[1:number], line, lines[number + 1 :]
    return f"---{tail}", [], f"---{tail}", lines


def without(lines: Sequence[str], marks: tuple[str, str]) -> list[str]:
    span = _span(lines, marks)
    return list(lines) if span is None else [*lines[: span[0]], *lines[span[1] + 1 :]]


def put(lines: Sequence[str], marks: tuple[str, str], inner: Sequence[str], tail: str) -> list[str]:
    """The lines with our part in its place, at the end where it has none yet."""
    span, ours = _span(lines, marks), [f"{line}{tail}" for line in (marks[0], *inner, marks[1])]
    if span is not None:
        return [*lines[: span[0]], *ours, *lines[span[1] + 1 :]]
    if marks is FRONT:
        return [*lines, *ours]
    *before, last = lines
    return [*before, f"{last}{tail}", *([tail] if last.strip() else []), *ours, ""]


def _span(lines: Sequence[str], marks: tuple[str, str]) -> tuple[int, int] | None:
    """The first and last line of our part, None where there is none."""
    starts, ends = ([i for i, line in enumerate(lines) if _is_mark(line, mark)] for mark in marks)
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or starts[0] > ends[0]:
        text = f"the marks {marks[0]} and {marks[1]} in {NAME} are not one pair"
        raise CallError(text, Reason.BAD_CALL, hint="delete them, or push with --no-card")
    return starts[0], ends[0]


def _is_mark(line: str, mark: str) -> bool:
    """Marks are told by their first words, so that the rest may be reworded."""
    words = mark.split()
    return line.split()[: min(3, len(words))] == words[: min(3, len(words))]
