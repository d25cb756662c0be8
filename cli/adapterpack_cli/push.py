"""`adapterpack push` and `adapterpack pull`: files to the Hub or another store, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from adapterpack import transfer
from adapterpack.stores import SUFFIXES, shown
from adapterpack_cli import _output, _summary
from adapterpack_cli._place import PLACE
from adapterpack_cli._tables import Column
from adapterpack_cli._tables import show as show_table

_LONG = 16 << 20  # bytes; what is shorter has no bar
_CELL = 1 << 16  # bytes of one step of the bar


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=PLACE)
@click.argument("folder", metavar="DEST", type=PLACE)
@click.option("--card/--no-card", default=True, help="Write DEST/README.md, or bring our part of it up to date.")
@click.option(
    "--base-model", default="", metavar="REPOSITORY", help="The backbone's repository on the Hub, for the card."
)
@click.option(
    "--create", type=click.Choice(["private", "public"]), help="Make a repository of the Hub that is not there."
)
@click.option("--message", "-m", default="", help="Of the commit on the Hub.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def push(
    files: Sequence[str],
    folder: str,
    card: bool,
    base_model: str,
    create: str | None,
    message: str,
    force: bool,
    as_json: bool,
) -> None:
    """Verify FILEs and put them into DEST, with a model card beside them.

    DEST is hf://user/repository[@branch][/folder], s3://bucket/prefix, another URL that fsspec writes to, or a folder.
    """
    if folder.lower().endswith(SUFFIXES):
        raise click.UsageError(f"DEST comes last and is a folder: {folder} is a file's name")
    with _output.busy(f"verifying and pushing {_output.counted(len(files), 'file')}"):
        done = transfer.push(
            files, folder, card=card, base_model=base_model, create=create or "", message=message, force=force
        )
    _output.notes(done.notes)
    if as_json:
        about = {"folder": done.folder, "card": done.card or None, "commit": done.commit or None}
        _output.print_json({**about, "files": list(done.files)})
        return
    out = _output.console()
    rows = [[file["path"], f"{file['file_bytes']:,}", file["digest"][:19]] for file in done.files]
    show_table(out, (Column("file", least=16), Column("bytes", right=True), Column("digest", drop=1)), rows)
    for what, where in (("card", done.card), ("commit", done.commit)):
        if where:
            out.print(f"{what} {_output.plain(where)}")


@click.command()
@click.argument("source", type=PLACE)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--task", help="Fetch this task alone.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(source: str, out: Path, task: str | None, force: bool, as_json: bool) -> None:
    """Fetch SOURCE, verify everything in it, and write it to a file.

    SOURCE is hf://user/repository/file.apk, s3://…, https://…, or any URL that fsspec opens.
    """
    with _bar(source) as told:
        done = transfer.pull(source, out, task=task, force=force, told=told)
    if as_json:
        _output.print_json({"source": shown(source), **done.sizes})
    else:
        _summary.show_files(_output.console(), [done.sizes])


@contextmanager
def _bar(source: str) -> Iterator[Callable[[int, int], None]]:
    """What is told of the bytes that came: a bar on standard error for a long transfer, a spinner for a short one."""
    with ExitStack() as shown_now:
        shown_now.enter_context(_output.busy(f"fetching {shown(source)}"))
        advance: list[Callable[..., None]] = []

        def told(count: int, total: int) -> None:
            if not advance:
                shown_now.pop_all().close()  # the spinner
                steps = total // _CELL if total >= _LONG else 0
                advance.append(shown_now.enter_context(_output.progress("fetching", steps)))
            advance[0](count // _CELL)

        yield told
