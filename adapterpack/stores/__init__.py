"""Where files lie when they are not on this disk: URLs that fsspec opens, and repositories of the Hugging Face Hub.

Nothing here knows the format. Both libraries are imported when an address asks for them, and named when missing.
"""

from __future__ import annotations

from typing import Union

from adapterpack.stores._base import SUFFIXES as SUFFIXES
from adapterpack.stores._base import Store as Store
from adapterpack.stores._base import shown as shown
from adapterpack.stores.hub import HubAddress, HubRepository, HubSource, is_hub
from adapterpack.stores.urls import UrlFolder, UrlSource, folder_of
from adapterpack.stores.urls import refuse_read_only as refuse_read_only


def open_url(url: str) -> Union[UrlSource, HubSource]:
    """Random access to the file at a URL; where a folder is meant, to the only `.apk` in it.

    Raises:
        MissingFileError: `missing-file`.
        CallError: `missing-extra`, `io-error`, or `bad-call` for a folder of several files.
    """
    return HubSource(url) if is_hub(url) else UrlSource(url)


def open_folder(url: str, create: str = "") -> Store:
    """The folder at a URL, to write into.

    Args:
        url: `hf://user/repository`, or anything that fsspec writes to.
        create: "private" or "public" makes a repository of the Hub that is not there; "" refuses.

    Raises:
        MissingFileError: `missing-file`, no such repository.
        CallError: `missing-extra`, `io-error`.
    """
    return HubRepository(url, create) if is_hub(url) else UrlFolder(url)


def read_folder(url: str) -> Union[HubRepository, UrlFolder]:
    """The folder at a URL, to list (`names`) and read from (`source`); on the Hub all of it is of one commit.

    Raises:
        MissingFileError: `missing-file`, no such repository.
        CallError: `missing-extra`, `io-error`.
    """
    return HubRepository(url, None) if is_hub(url) else UrlFolder(url)


def called(url: str) -> str:
    """What the folder at a URL is called: the last part of its path, or of the repository's name; never a password."""
    if is_hub(url):
        return HubAddress.parse(url).called
    return folder_of(shown(url))[0].partition("?")[0].rstrip("/").rpartition("/")[2]
