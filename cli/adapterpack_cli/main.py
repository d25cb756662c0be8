"""The `adapterpack` command: finds subcommands on demand, prints errors in one line, sets the exit status.

Exit status: 0 done, 1 the data is at fault, 2 the call is at fault, 130 interrupted, 141 the
reader of a pipe went away.
"""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

import adapterpack
from adapterpack.errors import Reason, printable
from adapterpack_cli import _output, _streams

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# command → module; imported when asked for, so that `inspect` does not pay for `load`
_COMMANDS = {
    "pack": "pack",
    "inspect": "inspect",
    "verify": "verify",
    "load": "load",
    "unpack": "unpack",
    "bundle": "bundle",
    "split": "bundle",
    "push": "push",
    "pull": "push",
    "train": "train",
    "sensitivity": "sensitivity",
    "evaluate": "evaluate",
    "diff": "diff",
    "serve": "serve",
    "predict": "predict",
    "completion": "completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"adapterpack_cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,  # the help text is no one-line error
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(adapterpack.__version__, prog_name="adapterpack")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Small, checked, self-describing files for the adapters of a frozen vision transformer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    warnings.showwarning = _show_warning
    try:
        status = _run([word for word in words if word != "--debug"])
    except (Exception, KeyboardInterrupt) as error:  # the last place: a user sees one line, whatever went wrong
        if debug:
            import traceback  # not needed where all goes well

            traceback.print_exc()
        text, status = _explain(error)
        click.echo(f"error: {text}", err=True)
    sys.exit(status)


def _run(words: list[str]) -> int:
    """The status that a command ends with; its errors pass.

    Raises:
        CallError: `io-error`, standard output does not take what was written.
    """
    _streams.prepare()
    before = sys.stdout
    try:
        status = cli.main(words, prog_name="adapterpack", standalone_mode=False)
        sys.stdout.flush()
    except (
        SystemExit
    ) as end:  # when the reader of a pipe went away: rich in answer to the error, click with new outputs
        if sys.stdout is before and not isinstance(end.__context__, BrokenPipeError):
            raise
        return _reader_gone()
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:  # files are written elsewhere, errors named
            raise
        _streams.discard()
        raise adapterpack.CallError(f"standard output: {error.strerror}", Reason.IO) from error
    return status if isinstance(status, int) else 0  # what ctx.exit() gave


def _reader_gone() -> int:
    """Nothing is wrong, but not all was said: the status of a program that the signal of a pipe ends."""
    _streams.discard()
    return 141


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, adapterpack.AdapterPackError):
        return _output.told(error), error.exit_status
    if isinstance(error, click.UsageError):
        place = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _one_line(error) + place, 2
    if isinstance(error, click.ClickException):
        return _one_line(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a machine with more", 1
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", 130
    if isinstance(error, OSError) and error.filename is not None:
        return f"{printable(error.filename)}: {error.strerror}; check the path", 2
    text = printable(" ".join(str(error).split()))[:200]
    return f"{type(error).__name__}: {text}; a mistake of adapterpack: please report it with what --debug shows", 1


def _one_line(error: click.ClickException) -> str:
    return printable(" ".join(error.format_message().split()))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings in one line; other packages' are no business of a user of this command."""
    if category.__module__.startswith("adapterpack"):
        click.echo(f"warning: {message}", err=True)
