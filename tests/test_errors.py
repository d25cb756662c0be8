"""The error tree: parents, exit statuses, reasons, and messages that are safe to print."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterpack import errors
from adapterpack.errors import (
    AdapterPackError,
    CallError,
    CorruptFileError,
    MissingFileError,
    Reason,
    printable,
    steering,
)

TREE = {
    errors.CorruptFileError: (AdapterPackError, ValueError, 1),
    errors.UnsupportedVersionError: (AdapterPackError, ValueError, 1),
    errors.BackboneMismatchError: (AdapterPackError, ValueError, 1),
    errors.UnsupportedAdapterError: (AdapterPackError, ValueError, 1),
    errors.CallError: (AdapterPackError, Exception, 2),
    errors.MissingFileError: (CallError, FileNotFoundError, 2),
}


@pytest.mark.parametrize("kind", TREE)
def test_parents_and_status(kind: type[AdapterPackError]) -> None:
    *parents, status = TREE[kind]
    error = kind("message", Reason.TRUNCATED)
    assert all(isinstance(error, parent) for parent in parents)
    assert error.exit_status == status


def test_the_tree_is_complete() -> None:
    found = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AdapterPackError) and kind is not AdapterPackError
    }
    assert found == set(TREE)


def test_parts_of_an_error() -> None:
    error = CorruptFileError("the file is empty", Reason.TRUNCATED, "byte 0", "fetch it again")
    assert str(error) == "the file is empty (at byte 0); fetch it again"
    assert str(CorruptFileError("m", Reason.TRUNCATED)) == "m"
    assert (error.message, error.reason, error.where, error.hint) == (
        "the file is empty",
        "truncated",
        "byte 0",
        "fetch it again",
    )


def test_a_reason_is_a_plain_string() -> None:
    error = CallError("m", Reason.FILE_EXISTS)
    assert error.reason == "file-exists" and type(error.reason) is str


def test_reasons_are_kebab_case_and_distinct() -> None:
    values = [reason.value for reason in Reason]
    assert len(set(values)) == len(values)
    assert all(value.replace("-", "").isalnum() and value == value.lower() for value in values)


@pytest.mark.parametrize("kind", TREE)
def test_errors_survive_processes(kind: type[AdapterPackError]) -> None:
    """`verify` hands them from worker to parent."""
    error = kind("message", Reason.TRUNCATED, "here", "do this")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind and str(again) == str(error) and again.reason == error.reason


def test_a_missing_file_is_a_file_not_found_error() -> None:
    with pytest.raises(FileNotFoundError):
        raise MissingFileError("x: no such file", Reason.MISSING_FILE)
    assert str(MissingFileError("x: no such file", Reason.MISSING_FILE)) == "x: no such file"


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert not steering(shown)
    assert str(CorruptFileError(text, Reason.BAD_NAME, text, text)).isprintable()


def test_printable_keeps_ordinary_text() -> None:
    assert printable("räder 猫 × … 😀") == "räder 猫 × … 😀"
    assert printable("\x1b[2J\n\u202e\ud800") == "\\x1b[2J\\n\\u202e\\ud800"


@pytest.mark.parametrize(
    "bad", ["\x00", "\x1b", "\x7f", "\x85", "\u200f", "\u2028", "\u2029", "\u202e", "\u2069", "\ud800"]
)
def test_steering(bad: str) -> None:
    assert steering(f"fine {bad} text") == bad
    assert steering("fine text, räder 猫") == ""
