"""Encoded tasks to one file, and the rule that all of them belong to one backbone.

`pack`, `bundle` and `split` all end here; payloads move unread, so a task's digest survives.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapterpack.adapter import Backbone
from adapterpack.container import digest, framing, parse, strict_json
from adapterpack.container.index import Index, to_json
from adapterpack.errors import BackboneMismatchError, CallError, Reason
from adapterpack.packing.encode import EncodedTask


def join(tasks: Sequence[EncodedTask], backbone: Backbone) -> bytes:
    """The bytes of a file.

    Raises:
        CallError: `duplicate-name` for two tasks of one name, `limit-exceeded`.
        UnsupportedAdapterError: never; what cannot be stored was refused when it was encoded.
    """
    require_different([(task.entry.name, "") for task in tasks])
    index = Index(tuple(task.entry for task in tasks), backbone)
    text = strict_json.dumps(to_json(index))
    parse.parse_index(text)  # the writer obeys every rule of the reader
    checksums = b"".join(digest.checksum(payload).to_bytes(4, "little") for task in tasks for payload in task.payloads)
    table = checksums + b"".join(task.digest for task in tasks)
    return framing.build_head(text, table) + b"".join(payload for task in tasks for payload in task.payloads)


def require_different(names: Sequence[tuple[str, str]]) -> None:
    """Refuse two tasks of one name.

    Args:
        names: (task, file it comes from, or "") of each.

    Raises:
        CallError: `duplicate-name`, naming both files.
    """
    twice = parse.repeated_name([task for task, _ in names])
    if twice is None:
        return
    files = [file for task, file in names if file and parse.repeated_name([task, twice])]
    where = f" ({' and '.join(files[:2])})" if files else ""
    raise CallError(f"two tasks are called {twice!r}{where}", Reason.DUPLICATE_NAME, hint="rename one: pack --task")


def common_backbone(backbones: Sequence[tuple[str, Backbone]]) -> Backbone:
    """The one backbone that several files agree on; a missing name or fingerprint agrees with any.

    Args:
        backbones: (file name, backbone) of each.

    Raises:
        BackboneMismatchError: `backbones-differ`, naming both files.
    """
    found = Backbone()
    origin = ""
    for name, backbone in backbones:
        for field in ("fingerprint", "name"):
            mine, theirs = getattr(found, field), getattr(backbone, field)
            if mine and theirs and mine != theirs:
                message = f"{origin} is for the backbone {mine}, {name} for {theirs}"
                raise BackboneMismatchError(message, Reason.BACKBONES_DIFFER, hint="bundle files of one backbone only")
        if not origin or (backbone.fingerprint and not found.fingerprint):
            origin = name
        found = Backbone(found.name or backbone.name, found.fingerprint or backbone.fingerprint)
    return found
