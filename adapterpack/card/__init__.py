"""The model card of a folder of files: what each holds and costs, and how to load it. Pure: texts in, a text out.

What is ours stands between two marks, in the front matter and in the body; a card's other lines are its author's and
come back byte for byte. A key that the author gave in the front matter is never given again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapterpack.card import _body, _front
from adapterpack.card._marks import BODY, FRONT, put, split, without
from adapterpack.card._marks import NAME as NAME
from adapterpack.card._words import Json, cell, title

_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:")


def model_card(files: Sequence[Json], existing: str, *, folder: str, base_model: str = "") -> str:
    """A new card, or an existing one with our part brought up to date.

    Args:
        files: of the folder, each as `inspect --json` describes it, `path` being the file's name.
        existing: the card's text, "" where there is none.
        folder: its address, as `adapterpack.load` takes it.
        base_model: the backbone's repository on the Hub; "" takes timm's repository where the files name a backbone
            of timm with its tag.

    Returns:
        The text.

    Raises:
        CallError: `bad-call`, the marks in the existing card are not a pair.

    Source: the Hub's documentation of model cards: `library_name`, `base_model`, `base_model_relation`, `model-index`.
    """
    tail = "\r" if "\r\n" in existing else ""
    opening, front, closing, body = split(existing, tail)
    own = without(front, FRONT)
    taken = {match[1] for line in own if (match := _KEY.match(line))}
    rows = [
        line for key, lines in _front.entries(files, folder, base_model).items() if key not in taken for line in lines
    ]
    front = put(front, FRONT, rows, tail)
    if not existing.strip():
        body = ["", f"# {cell(title(folder))}", ""]
    body = put(body, BODY, _body.body(files, folder), tail)
    return "\n".join([opening, *front, closing, *body])
