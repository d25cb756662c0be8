"""URLs through fsspec: files to read with range requests, and folders to write into."""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from adapterpack.errors import CallError, CorruptFileError, Reason
from adapterpack.stores._base import only_file, remote_errors, shown

# where writing an object is all or nothing by itself; elsewhere a file is renamed into its place
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}


class UrlSource:
    """One request for the size, then one range request a read.

    From a server that ignores ranges the file comes whole, once, and is kept.

    Attributes:
        name: the URL, without password and query.
    """

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self._fs, self._path = _opened(url)
        with remote_errors(url):
            info = self._fs.info(self._path)
            if info.get("type") == "directory":
                within = [entry["name"] for entry in self._fs.ls(self._path, detail=True) if entry["type"] == "file"]
                self._path = only_file(within, self.name)
                info = self._fs.info(self._path)
        if info.get("size") is None:
            hint = "download the file and open that"
            raise CallError(f"{self.name}: the server does not tell the size", Reason.IO, hint=hint)
        self._size = int(info["size"])
        self._url, self._whole = url, b""

    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        if self._whole:
            return self._whole[offset:end]
        with remote_errors(self._url):
            data = bytes(self._fs.cat_file(self._path, start=offset, end=end))
        if len(data) <= end - offset:
            return data
        if len(data) != self._size:
            text = f"{self.name}: {len(data):,} bytes came, {end - offset:,} of {self._size:,} were asked for"
            raise CorruptFileError(text, Reason.TRUNCATED, f"byte {offset}", "the file changed meanwhile: try again")
        self._whole = data
        return data[offset:end]


class UrlFolder:
    """A folder, or a prefix of object names.

    Attributes:
        name: the URL, without password and query.
    """

    def __init__(self, url: str) -> None:
        self.name, self._url = shown(url).rstrip("/"), url.rstrip("/")
        self._fs, self._path = _opened(self._url)

    def names(self) -> tuple[str, ...]:
        with remote_errors(self._url):
            try:
                entries = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return ()
        within = [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"]
        return tuple(sorted(name for name in within if name))

    def read(self, name: str) -> bytes:
        with remote_errors(self.url(name)):
            return bytes(self._fs.cat_file(self._at(name)))

    def source(self, name: str) -> UrlSource:
        """Random access to a file."""
        return UrlSource(self.url(name))

    def url(self, name: str) -> str:
        return _joined(self._url, name)

    def write(self, files: Mapping[str, bytes], message: str) -> str:
        protocol = self._fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        for name, data in files.items():
            with remote_errors(self.url(name)):
                if not names & _WHOLE:
                    self._fs.makedirs(self._path, exist_ok=True)
                    self._put_and_rename(name, data)
                else:
                    self._fs.pipe_file(self._at(name), data)
        return ""

    def _put_and_rename(self, name: str, data: bytes) -> None:
        temporary = self._at(f".{name}.{token_hex(6)}.tmp")
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, self._at(name))
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)
            raise

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"


def refuse_read_only(url: str) -> None:
    """Refuse to write where no protocol could: a web server takes no files.

    Raises:
        CallError: `bad-call`.
    """
    if url.lower().startswith(("http://", "https://")):
        hint = "push to hf://…, s3://… or a folder, from which a web server can serve"
        raise CallError(f"{shown(url)}: a web server cannot be written to", Reason.BAD_CALL, hint=hint)


def list_url(url: str) -> dict[str, Mapping[str, Any]]:
    """fsspec's facts, and the address as `url`, of every file under a URL, by its path there; looked up afresh."""
    fs, path = _opened(url)
    with remote_errors(url):
        found = fs.find(path, detail=True)
        return {
            name.removeprefix(path).lstrip("/"): {**found[name], "url": _within(url, fs, path, name)} for name in found
        }


def _within(url: str, fs: Any, path: str, name: str) -> str:
    """The address of a file under a URL, with what no path has: the host (ftp, sftp), the account, the archive."""
    if not name.startswith(path):  # a page whose links lead elsewhere
        return str(fs.unstrip_protocol(name))
    return _joined(url, name.removeprefix(path).lstrip("/"))


def folder_of(url: str) -> tuple[str, str]:
    """What of a URL says where a folder is, and what follows: zip://FOLDER::ARCHIVE, but simplecache::FOLDER."""
    folder, chained, inner = url.partition("::")
    return (folder, chained + inner) if "://" in folder else (url, "")


def _joined(url: str, name: str) -> str:
    """The address of a file in the folder at a URL."""
    folder, rest = folder_of(url)
    bare = folder.rstrip("/")
    return f"{folder if bare.endswith(':') else bare + '/'}{name}{rest}"


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        CallError: `missing-extra`, fsspec or the package of the protocol is not installed; `io-error`.
    """
    try:
        import fsspec  # optional, and slow to import
    except ImportError as error:
        hint = "pip install 'adapterpack[remote]'"
        raise CallError(f"{shown(url)} needs fsspec", Reason.MISSING_EXTRA, hint=hint) from error
    with remote_errors(url):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()  # instances are shared, and a listing from before says an old size
    return fs, str(path)
