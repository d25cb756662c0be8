"""Repositories of the Hugging Face Hub: `hf://user/repository[@revision][/folder][/file]`.

Reading is one request for size and commit, then one range request a read, all of that commit, so a file that is
replaced meanwhile changes nothing. Writing is one commit on top of what was read. Tokens are huggingface_hub's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from adapterpack.errors import CallError, MissingFileError, Reason
from adapterpack.stores._base import SUFFIXES, only_file, remote_errors, shown

_PREFIX = "hf://"
_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
_PART = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"(?:(datasets|spaces|models)/)?({_PART}/{_PART})(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?"
)


def is_hub(url: str) -> bool:
    """Whether a URL is of the Hub."""
    return url.startswith(_PREFIX)


@dataclass(frozen=True, slots=True)
class HubAddress:
    """What an address says.

    Attributes:
        repository: "user/repository".
        kind: "model", "dataset" or "space".
        revision: branch, tag or commit, or "".
        path: within the repository, without slashes at its ends.
    """

    repository: str
    kind: str = "model"
    revision: str = ""
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> HubAddress:
        """Read an address.

        Raises:
            CallError: `bad-call`.
        """
        match = _ADDRESS.fullmatch(url.removeprefix(_PREFIX))
        parts = (match[4] or "").strip("/").split("/") if match else []
        if match is None or {".", ".."} & set(parts):
            hint = "expected hf://user/repository/file.apk"
            raise CallError(f"{shown(url)} is no address on the Hub", Reason.BAD_CALL, hint=hint)
        path = "/".join(part for part in parts if part)
        return cls(match[2], _KINDS[match[1] or "models"], unquote(match[3] or ""), path)

    def within(self, name: str) -> str:
        """The path of a file in this folder."""
        return f"{self.path}/{name}" if self.path else name

    @property
    def called(self) -> str:
        """The name of the folder, or of the repository."""
        return (self.path or self.repository).rpartition("/")[2]

    def at(self, revision: str, path: str) -> str:
        """The address of another path at a revision."""
        kind = "" if self.kind == "model" else f"{self.kind}s/"
        mark = f"@{revision.replace('/', '%2F')}" if revision else ""
        return f"{_PREFIX}{kind}{self.repository}{mark}/{path}"


class HubSource:
    """A file on the Hub.

    Args:
        url: its address; or that of a folder with one `.apk` in it, unless `exact`.
        exact: whether the address is the file's own, whatever its suffix is.

    Attributes:
        name: its address.
    """

    def __init__(self, url: str, *, exact: bool = False) -> None:
        at = HubAddress.parse(url)
        self.name, self._url = url, url
        hub = _hub(url)
        with remote_errors(url):
            if not exact and not at.path.lower().endswith(SUFFIXES):
                names = _listed(hub, at, at.revision or "main")
                at = HubAddress(at.repository, at.kind, at.revision, at.within(only_file(names, url)))
            address = {"repo_id": at.repository, "filename": at.path, "repo_type": at.kind}
            endpoint = hub.constants.ENDPOINT
            first = hub.hf_hub_url(**address, revision=at.revision or "main", endpoint=endpoint)
            found = hub.get_hf_file_metadata(first)
            revision = found.commit_hash or at.revision or "main"
            self._address = hub.hf_hub_url(**address, revision=revision, endpoint=endpoint)
        if found.size is None:
            hint = "download the file and open that"
            raise CallError(f"{url}: the Hub does not tell the size", Reason.IO, hint=hint)
        self._size, self._hub = int(found.size), hub

    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        hub = self._hub
        with remote_errors(self._url):
            headers = {
                **hub.utils.build_hf_headers(),
                "Range": f"bytes={offset}-{end - 1}",
                "Accept-Encoding": "identity",
            }
            timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
            answer = hub.utils.get_session().get(self._address, headers=headers, timeout=timeout)
            hub.utils.hf_raise_for_status(answer)
        data: bytes = answer.content
        return data if answer.status_code == 206 else data[offset:end]


class HubRepository:
    """A repository, or a folder in one: what it holds at one commit, and commits on top of that.

    Args:
        url: its address.
        create: "private" or "public" makes a repository that is not there; "" refuses, None is for reading only.

    Attributes:
        name: its address.
    """

    def __init__(self, url: str, create: str | None = "") -> None:
        self.name, self._at, hub = url.rstrip("/"), HubAddress.parse(url.rstrip("/")), _hub(url)
        self._hub, self._api = hub, hub.HfApi(endpoint=hub.constants.ENDPOINT)
        self._revision = self._at.revision or "main"
        about = {"repo_id": self._at.repository, "repo_type": self._at.kind}
        with remote_errors(url):
            if create:
                self._api.create_repo(**about, private=create == "private", exist_ok=True)
            try:
                self._commit = self._api.repo_info(**about, revision=self._revision).sha
            except hub.utils.RepositoryNotFoundError as error:
                text = f"{url}: no such repository, or no access to it"
                hint = "check the name, or log in with `hf auth login`"
                hint += "" if create is None else "; --create private makes it"
                raise MissingFileError(text, Reason.MISSING_FILE, hint=hint) from error

    def names(self) -> tuple[str, ...]:
        with remote_errors(self.name):
            try:
                return _listed(self._hub, self._at, self._commit)
            except self._hub.utils.EntryNotFoundError:
                return ()

    def read(self, name: str) -> bytes:
        source = self.source(name)
        return source.read_at(0, source.size())

    def source(self, name: str) -> HubSource:
        """Random access to a file, as it is at the commit that was found first."""
        return HubSource(self._at.at(self._commit, self._at.within(name)), exact=True)

    def url(self, name: str) -> str:
        return self._at.at(self._at.revision, self._at.within(name))

    def write(self, files: Mapping[str, bytes], message: str) -> str:
        add = self._hub.CommitOperationAdd
        added = [add(path_in_repo=self._at.within(name), path_or_fileobj=data) for name, data in files.items()]
        with remote_errors(self.name), _silent(self._hub):
            done = self._api.create_commit(
                repo_id=self._at.repository,
                repo_type=self._at.kind,
                revision=self._revision,
                operations=added,
                commit_message=message,
                parent_commit=self._commit,
            )
        self._commit = done.oid
        return str(done.commit_url)


@contextmanager
def _silent(hub: Any) -> Iterator[None]:
    """Without the library's progress bars, which it draws into whatever standard error is."""
    utils = hub.utils
    if utils.are_progress_bars_disabled() or hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield  # off already, or on by the user's own environment, which has the last word
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _listed(hub: Any, at: HubAddress, revision: str) -> tuple[str, ...]:
    """The files directly in a folder of a repository, sorted."""
    api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
    rows = api.list_repo_tree(at.repository, at.path or None, repo_type=at.kind, revision=revision)
    names = [row.path.rpartition("/")[2] for row in rows if isinstance(row, hub.hf_api.RepoFile)]
    return tuple(sorted(names))


def _hub(url: str) -> Any:
    """huggingface_hub, or what to install.

    Raises:
        CallError: `missing-extra`.
    """
    try:
        import huggingface_hub  # optional, and slow to import
        import huggingface_hub.hf_api
        import huggingface_hub.utils
    except ImportError as error:
        hint = "pip install 'adapterpack[hub]'"
        raise CallError(f"{url} needs huggingface_hub", Reason.MISSING_EXTRA, hint=hint) from error
    return huggingface_hub
