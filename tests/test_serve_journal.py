"""Which changes a second board is told: those whose effect is still served."""

from __future__ import annotations

from adapterpack.serving.catalog import Listing
from adapterpack.serving.entries import Entry
from adapterpack.serving.journal import Change, Done, Journal


def entry(file: str, stamp: str, *tasks: str) -> Entry:
    return Entry(file, stamp, "", {task: {} for task in tasks})


def upload(task: str, stamp: str = "1") -> Entry:
    return entry(f"upload:{task}", stamp, task)


def kinds(journal: Journal) -> list[tuple[str, str]]:
    return [(change.kind, change.name or change.data.decode()) for change in journal.changes]


def test_an_upload_is_held_as_long_as_one_of_its_tasks_is_served() -> None:
    journal = Journal()
    journal.note(Change("add", "", b"both"), Done((upload("a"), upload("b")), 1))
    journal.note(Change("remove", "a"), Done((upload("a"),), 2))
    journal.forget(Listing(2, (upload("b"),)))
    assert kinds(journal) == [("add", "both"), ("remove", "a")]
    journal.note(Change("add", "", b"new"), Done((upload("b", "2"),), 3))
    journal.forget(Listing(3, (upload("b", "2"),)))
    assert kinds(journal) == [("add", "new")]
    journal.note(Change("remove", "b"), Done((upload("b", "2"),), 4))
    journal.forget(Listing(4, ()))
    assert kinds(journal) == []


def test_a_listing_from_before_a_change_drops_nothing_of_it() -> None:
    journal = Journal()
    journal.note(Change("add", "", b"a"), Done((upload("a"),), 5))
    journal.note(Change("remove", "a"), Done((upload("a"),), 6))
    journal.forget(Listing(4, ()))
    assert kinds(journal) == [("add", "a"), ("remove", "a")]


def test_the_same_bytes_again_take_the_place_of_what_was() -> None:
    journal = Journal()
    for version in range(0, 30, 2):
        journal.note(Change("add", "", b"a"), Done((upload("a"),), version))
        journal.note(Change("remove", "a"), Done((upload("a"),), version + 1))
    assert kinds(journal) == [("add", "a"), ("remove", "a")]


def test_what_was_removed_from_a_file_stays_so_until_the_file_changes_or_is_read_again() -> None:
    journal, file = Journal(), entry("f.apk", "1", "a", "b")
    journal.note(Change("remove", "a"), Done((file,), 1))
    journal.forget(Listing(1, (entry("f.apk", "1", "b"),)))
    assert kinds(journal) == [("remove", "a")]
    journal.forget(Listing(2, (entry("f.apk", "2", "a", "b"),)))
    assert kinds(journal) == []
    journal.note(Change("remove", "a"), Done((file,), 3))
    journal.note(Change("reread", "f.apk"), Done((entry("f.apk", "3", "a", "b"),), 4))
    assert kinds(journal) == []
