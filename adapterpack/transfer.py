"""The verbs `push` and `pull`: files to a store and back, verified before they are written anywhere.

It knows files of ours and stores; what a card says is `card`'s affair.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from adapterpack import _files
from adapterpack.card import NAME, model_card
from adapterpack.errors import AdapterPackError, CallError, CorruptFileError, Reason, UnsupportedVersionError
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.packing.cross import standalone
from adapterpack.packing.join import join
from adapterpack.packing.sizes import describe_file
from adapterpack.stores import SUFFIXES, Store, open_folder, refuse_read_only

PathLike = Union[str, "os.PathLike[str]"]
Json = Mapping[str, Any]
Told = Callable[[int, int], None]

_PART = 8 << 20  # bytes of one request of a long transfer
_SHOWN_AT_MOST = 200  # other files of the folder that a card describes, each a request


@dataclass(frozen=True, slots=True, eq=False)
class Pushed:
    """What `push` wrote.

    Attributes:
        folder: address of the folder.
        files: each file as `inspect --json` describes it, with its address as `path`.
        card: address of the model card, "" where none was written.
        commit: address of the commit, "" where the store has none.
        notes: one sentence for each file of the folder that the card could not describe.
    """

    folder: str
    files: tuple[Json, ...]
    card: str
    commit: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """What `pull` wrote: the path, and the file as `inspect --json` describes it."""

    path: str
    sizes: Json


class _LocalFolder:
    """A folder of this machine as a store."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def names(self) -> tuple[str, ...]:
        return _files.list_folder(self._path)

    def read(self, name: str) -> bytes:
        source = _files.source_of(self._path / name)
        return source.read_at(0, source.size())

    def url(self, name: str) -> str:
        return str(self._path / name)

    def write(self, files: Mapping[str, bytes], message: str) -> str:
        _files.make_folder(self._path)
        _files.write_all({self._path / name: data for name, data in files.items()}, force=True)
        return ""


def push(
    files: Sequence[_files.SourceLike],
    folder: PathLike,
    *,
    card: bool = True,
    base_model: str = "",
    create: str = "",
    message: str = "",
    force: bool = False,
) -> Pushed:
    """Put files into a folder of a store, with a model card beside them.

    Each file is verified first. On the Hub everything is one commit; object stores take each file whole or not at all,
    and the card last; other file systems rename each file into its place.

    Args:
        files: paths (or URLs) of `.apk` files; they keep their names.
        folder: `hf://user/repository[@branch][/folder]`, `s3://bucket/prefix`, another URL that fsspec writes to, or a
            local folder.
        card: write README.md, or bring our part of it up to date; the author's lines stay as they are.
        base_model: the backbone's repository on the Hub, for the card; "" where timm's name says it.
        create: "private" or "public" makes a repository of the Hub that is not there.
        message: of the commit; "" for one that names the files.
        force: replace files of the same names.

    Raises:
        CorruptFileError, UnsupportedVersionError: a file that does not verify; nothing is written.
        CallError: `file-exists`, `duplicate-name`, `io-error`, `missing-extra`; `bad-call` for a file of another
            suffix, a web server, or a card whose marks are broken.
    """
    refuse_read_only(os.fspath(folder))
    contents = _verified(files)
    store = _store(os.fspath(folder), create)
    there = store.names()
    for name in contents:
        if name in there and not force:
            text = f"{_joined(store.name, name)} exists already"
            raise CallError(text, Reason.FILE_EXISTS, hint="use --force (force=True) to replace it")
    described = {name: _described(open_bundle(data), name) for name, data in contents.items()}
    notes: list[str] = []
    written = dict(contents)
    if card:
        others = _others(store, [name for name in there if name not in contents], notes)
        existing = _text(store.read(NAME), _joined(store.name, NAME)) if NAME in there else ""
        rows = [row for _, row in sorted({**others, **described}.items())]
        where = store.name if "://" in store.name else Path(store.name).name  # a card tells nothing of this machine
        written[NAME] = model_card(rows, existing, folder=where, base_model=base_model).encode()
    commit = store.write(written, message or f"Add {', '.join(contents)}")
    rows = [{**row, "path": _joined(store.name, name)} for name, row in described.items()]
    return Pushed(store.name, tuple(rows), _joined(store.name, NAME) if card else "", commit, tuple(notes))


def pull(
    source: _files.SourceLike, out: PathLike, *, task: str | None = None, force: bool = False, told: Told | None = None
) -> Pulled:
    """Fetch a file, or one task of it, and write it once everything in it is verified.

    Args:
        source: `hf://user/repository/file.apk`, `s3://…`, `https://…`, any URL that fsspec opens, or a path. A folder
            or repository of one `.apk` stands for that file.
        out: the file to write; whole or not at all.
        task: fetch this task alone, by range requests for the head and its payload (and those of the tasks that it is
            given; its segments are then coded anew).
        force: replace an existing file.
        told: called with the bytes of each part that came, and those of the whole file.

    Raises:
        CorruptFileError, UnsupportedVersionError: what came does not verify; nothing is written.
        CallError: `file-exists`, `unknown-task`, `io-error`, `missing-extra`.
        MissingFileError: `missing-file`.
    """
    _files.refuse_output(Path(out), force=force)
    found = _files.source_of(source)
    if task is None:
        Bundle(found)  # what is no .apk is refused by its head, however large it is
        data = _whole(found, told)
    else:
        opened = Bundle(found)
        opened.task_digest(task)
        data = join([standalone(opened, task)], opened.backbone)
    bundle = _checked(data, found.name)
    _files.write_atomic(out, data, force=force)
    return Pulled(str(out), {**describe_file(bundle), "path": str(out)})


def _verified(files: Sequence[_files.SourceLike]) -> dict[str, bytes]:
    """The bytes of each file by the name that it will have, decoded and compared with all checksums and digests."""
    contents: dict[str, bytes] = {}
    for file in files:
        source = _files.source_of(file)
        name = source.name.replace("\\", "/").rpartition("/")[2]
        if not name.lower().endswith(SUFFIXES) or name.startswith("."):
            hint = "name it like cifar.apk; pack makes one of other forms"
            raise CallError(f"{source.name} is no .apk by its name", Reason.BAD_CALL, hint=hint)
        if name.casefold() in map(str.casefold, contents):
            raise CallError(f"two files are called {name}", Reason.DUPLICATE_NAME, hint="rename one of them")
        data = _whole(source)
        _checked(data, source.name)
        contents[name] = data
    if not contents:
        raise CallError("there is no file to push", Reason.BAD_CALL, hint="give .apk files")
    return contents


def _checked(data: bytes, name: str) -> Bundle:
    """The opened file, every task decoded and verified; errors name where it came from."""
    try:
        bundle = open_bundle(data)
        for _ in bundle.verify():
            pass
    except AdapterPackError as error:
        raise type(error)(f"{name}: {error.message}", Reason(error.reason), error.where, error.hint) from error
    return bundle


def _whole(source: _files.Source, told: Told | None = None) -> bytes:
    size, parts = source.size(), []
    for start in range(0, size, _PART):
        parts.append(_files.read_exactly(source, start, min(_PART, size - start), source.name))
        if told is not None:
            told(len(parts[-1]), size)
    return b"".join(parts)


def _store(folder: str, create: str) -> Store:
    if create and not folder.startswith("hf://"):
        raise CallError("only repositories of the Hub are created", Reason.BAD_CALL, hint="leave --create out")
    if "://" not in folder or folder.startswith("file://"):
        path = Path(folder.removeprefix("file://"))
        if path.exists() and not path.is_dir():
            raise CallError(f"{path} is a file", Reason.NOT_A_FILE, hint="give a folder, which may be a new one")
        return _LocalFolder(path)
    return open_folder(folder, create)


def _others(store: Store, names: Sequence[str], notes: list[str]) -> dict[str, Json]:
    """What else lies in the folder, from the heads of the files."""
    found: dict[str, Json] = {}
    there = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(there) > _SHOWN_AT_MOST:
        notes.append(f"{NAME} lists {_SHOWN_AT_MOST} of the {len(there)} other files")
    for name in there[:_SHOWN_AT_MOST]:
        try:
            found[name] = _described(open_bundle(store.url(name)), name)
        except (CorruptFileError, UnsupportedVersionError) as error:
            notes.append(f"{NAME} leaves {name} out: {error}")
    return found


def _described(bundle: Bundle, name: str) -> Json:
    return {**describe_file(bundle), "path": name}


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = f"{name} is not UTF-8, and would be damaged"
        raise CallError(text, Reason.BAD_CALL, hint="convert it, or push with --no-card") from error


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
