"""The `adapterpack` command: finds subcommands on demand, prints errors in one line, sets the exit status.

Exit status: 0 done, 1 the data is at fault, 2 the call is at fault, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

import adapterpack
from adapterpack.errors import printable

# command → module; imported when asked for, so that `inspect` does not pay for `load`
_COMMANDS = {
    "pack": "pack",
    "inspect": "inspect",
    "verify": "verify",
    "load": "load",
    "unpack": "unpack",
    "bundle": "bundle",
    "split": "bundle",
    "train": "train",
    "sensitivity": "sensitivity",
    "evaluate": "evaluate",
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
        words = [word for word in words if word != "--debug"]
        status = cli.main(words, prog_name="adapterpack", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.ClickException, click.Abort, adapterpack.AdapterPackError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        text, status = _explain(error)
        click.echo(f"error: {text}", err=True)
        sys.exit(status)
    sys.exit(status if isinstance(status, int) else 0)  # what ctx.exit() gave


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, adapterpack.AdapterPackError):
        return str(error), error.exit_status
    if isinstance(error, click.UsageError):
        place = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _one_line(error) + place, 2
    if isinstance(error, click.ClickException):
        return _one_line(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a machine with more", 1
    return "interrupted", 130


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
