"""Arguments that name a place: a path, a URL, a model's name. They pass as text; a shell completes them as paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Place(click.types.StringParamType):
    """Text that is looked at where it is opened; nothing is asked of the file system before."""

    name = "place"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # only while a line is completed

        return [CompletionItem(incomplete, type="file")]


PLACE = Place()
BACKBONE = click.option(
    "--backbone", type=PLACE, required=True, metavar="NAME_OR_FILE", help="timm name, or .safetensors beside a .json."
)
