"""The public names: what `__all__` says is what is there, under the package's own name."""

from __future__ import annotations

import inspect
import types

import pytest

import adapterpack

# the contract's names; more may exist, none of these may go
PROMISED = {
    "AdapterPackError", "AdapterPool", "BackboneMismatchError", "CorruptFileError", "UnsupportedAdapterError",
    "UnsupportedVersionError", "load", "open", "pack",
}  # fmt: skip
TOOLS = {"TYPE_CHECKING", "Any", "annotations"}


def test_all_is_what_is_visible() -> None:
    early = {
        name
        for name, value in vars(adapterpack).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in TOOLS
    }
    assert early | set(adapterpack._LATE) == set(adapterpack.__all__)
    assert dir(adapterpack) == sorted(adapterpack.__all__)
    assert len(set(adapterpack.__all__)) == len(adapterpack.__all__)
    assert set(adapterpack.__all__) >= PROMISED


@pytest.mark.parametrize("name", adapterpack.__all__)
def test_public_names_say_where_they_are(name: str) -> None:
    value = getattr(adapterpack, name)
    assert value.__module__ == "adapterpack"
    assert value.__name__ == name


@pytest.mark.parametrize("name", adapterpack.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(adapterpack, name))


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        adapterpack.frobnicate  # noqa: B018


def test_from_import_of_everything() -> None:
    found: dict[str, object] = {}
    exec("from adapterpack import *", found)
    assert set(adapterpack.__all__) <= set(found)


def test_version() -> None:
    assert adapterpack.__version__.count(".") == 2
