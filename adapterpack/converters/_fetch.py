"""A trainer's folder that lies on a store: what is needed of it, on this disk for as long as it is read.

It knows which files a form has and how large they may be. The stores know how they are fetched, the converters what
they say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterpack._files import Source
from adapterpack._scratch import copy, scratch_folder
from adapterpack.container.names import fits_task
from adapterpack.converters import _folder, _labels, adapterhub, peft
from adapterpack.converters._base import SOURCE_BYTES
from adapterpack.converters.settings import BYTES
from adapterpack.errors import CallError, CorruptFileError, MissingFileError, Reason, UnsupportedAdapterError
from adapterpack.stores import SUFFIXES, called, read_folder, shown

SETTINGS = peft.SETTINGS  # AdapterHub's are called the same
_JSON = {SETTINGS: BYTES, adapterhub.HEAD_SETTINGS: BYTES, _labels.FILE: _labels.BYTES}
_NAME = 200  # bytes; a file system takes 255
_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/((?:(?:datasets|spaces)/)?[^/]+/[^/?#]+)")


@contextmanager
def fetched(url: str) -> Iterator[tuple[Path, str]]:
    """A folder at a URL, as a folder of the same name here that is gone afterwards; and a sentence about what came.

    The settings come first and say which other files are needed. No file is asked for before its size is known and
    allowed; in memory is a part of one at a time.

    Args:
        url: `hf://user/repository[@revision][/folder]`, `s3://…`, or another URL that fsspec lists.

    Raises:
        MissingFileError: `missing-file`: no such folder, or no settings or tensors in it.
        UnsupportedAdapterError: `unknown-source`, `ambiguous-source`.
        CorruptFileError: `limit-exceeded`; `truncated`, the connection broke.
        CallError: `bad-call` for the address of a file or page; `missing-extra`, `io-error`.
    """
    _require_folder(url)
    folder, where = read_folder(url), shown(url)
    there = folder.names()
    if SETTINGS not in there:
        hint = "pull fetches an .apk" if any(name.endswith(SUFFIXES) for name in there) else "check the address"
        hint += "; a folder of PEFT's or AdapterHub's is read from there"
        raise MissingFileError(f"{where} holds no {SETTINGS}", Reason.MISSING_FILE, hint=hint)
    with scratch_folder(_plain(called(url))) as target:
        size = _fetch(folder.source(SETTINGS), SETTINGS, target)
        others = {name: folder.source(name) for name in _needed(target, there, where)}
        for name, source in others.items():
            _require_small(source, name)
        size += sum(_fetch(source, name, target) for name, source in others.items())
        yield target, f"fetched {1 + len(others)} files of {where}, {size:,} bytes"


def _needed(target: Path, there: Collection[str], where: str) -> list[str]:
    """The files that belong to the fetched settings."""
    if peft.Peft().recognise(target):
        found = [_folder.one_of(peft.TENSORS, there, where)]
    elif adapterhub.AdapterHub().recognise(target):
        found = [_folder.one_of(adapterhub.TENSORS, there, where)]
        if {adapterhub.HEAD_SETTINGS, *adapterhub.HEAD_TENSORS} & set(there):
            found += [adapterhub.HEAD_SETTINGS] * (adapterhub.HEAD_SETTINGS in there)
            found.append(_folder.one_of(adapterhub.HEAD_TENSORS, there, where))
    else:
        text = f"{where}: {SETTINGS} is neither PEFT's nor AdapterHub's"
        raise UnsupportedAdapterError(text, Reason.UNKNOWN_SOURCE, hint="expected peft_type, or config")
    return [*found, *([_labels.FILE] if _labels.FILE in there else [])]


def _fetch(source: Source, name: str, target: Path) -> int:
    _require_small(source, name)
    copy(source, target / name)
    return source.size()


def _require_small(source: Source, name: str) -> None:
    limit = _JSON.get(name, SOURCE_BYTES)
    if source.size() > limit:
        text = f"{source.name} has {source.size():,} bytes"
        raise CorruptFileError(text, Reason.LIMIT, hint=f"at most {limit:,} are read")


def _require_folder(url: str) -> None:
    page = _PAGE.match(url)
    if page is not None:
        hint = f"write hf://{page[1]}"
        raise CallError(f"{shown(url)} is a page about a repository", Reason.BAD_CALL, hint=hint)
    if url.partition("?")[0].rpartition("/")[2] in (*peft.FILES, *adapterhub.FILES):
        raise CallError(f"{shown(url)} is one file of a folder", Reason.BAD_CALL, hint="give the folder's address")


def _plain(name: str) -> str:
    """The folder's own name, as on a disk; one that no task may have, or that is too long for a disk, is made plain."""
    if fits_task(name) and len(name.encode()) <= _NAME:
        return name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_NAME].strip("._") or "adapter"
