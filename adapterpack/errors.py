"""Every error that adapterpack raises on purpose, and the closed list of reasons.

    AdapterPackError                   exit status 1
    ├── CorruptFileError               the bytes are damaged, malformed or hostile
    ├── UnsupportedVersionError        the file is newer than this reader
    ├── BackboneMismatchError          the adapter was made for another backbone
    ├── UnsupportedAdapterError        the adapter does not fit or cannot be expressed
    └── CallError                      exit status 2: the call is at fault
        └── MissingFileError           (also a FileNotFoundError)

The data errors are `ValueError`s as well, so an existing `except ValueError` keeps working.
This module imports nothing of the package.
"""

from __future__ import annotations

from enum import Enum
from types import TracebackType


class Reason(str, Enum):
    """Stable reason codes; `spec/errors.md` has one row for each. Values never change once released."""

    # framing
    TRUNCATED = "truncated"
    BAD_MAGIC = "bad-magic"
    MANGLED_MAGIC = "mangled-magic"
    OTHER_FORMAT = "other-format"
    BAD_VERSION = "bad-version"
    NEWER_VERSION = "newer-version"
    UNKNOWN_FEATURE = "unknown-feature"
    RESERVED_BITS = "reserved-bits"
    HEAD_SIZE = "head-size"
    TRAILING_BYTES = "trailing-bytes"
    # integrity
    CHECKSUM = "checksum-mismatch"
    DIGEST = "digest-mismatch"
    # index
    INDEX_COMPRESSION = "index-compression"
    INDEX_ENCODING = "index-encoding"
    INDEX_SYNTAX = "index-syntax"
    DUPLICATE_KEY = "duplicate-key"
    BAD_NUMBER = "bad-number"
    TOO_DEEP = "too-deep"
    MISSING_FIELD = "missing-field"
    UNKNOWN_FIELD = "unknown-field"
    BAD_FIELD = "bad-field"
    BAD_NAME = "bad-name"
    DUPLICATE_NAME = "duplicate-name"
    SEGMENT_REFERENCE = "segment-reference"
    LIMIT = "limit-exceeded"
    # payload
    UNKNOWN_CODEC = "unknown-codec"
    UNKNOWN_METHOD = "unknown-method"
    BAD_PARAMETER = "bad-parameter"
    PAYLOAD_SIZE = "payload-size"
    PADDING_BITS = "padding-bits"
    NOT_FINITE = "not-finite"
    BAD_SCALE = "bad-scale"
    BAD_POSITIONS = "bad-positions"
    BAD_STREAM = "bad-stream"
    ZSTD_FRAME = "zstd-frame"
    BAD_SHAPE = "bad-shape"
    BAD_LABELS = "bad-labels"
    # backbone and adapter
    FINGERPRINT = "fingerprint-mismatch"
    BACKBONES_DIFFER = "backbones-differ"
    MISSING_SITE = "missing-site"
    SITE_SHAPE = "site-shape"
    NOT_FOLDABLE = "not-foldable"
    UNSUPPORTED_MODEL = "unsupported-model"
    ALREADY_LOADED = "already-loaded"
    NOT_EXPRESSIBLE = "not-expressible"
    # outside files
    UNKNOWN_SOURCE = "unknown-source"
    AMBIGUOUS_SOURCE = "ambiguous-source"
    UNMAPPED_TENSOR = "unmapped-tensor"
    MISSING_TENSOR = "missing-tensor"
    BAD_SOURCE = "bad-source"
    UNSAFE_SOURCE = "unsafe-source"
    CONFLICTING_SETTINGS = "conflicting-settings"
    # the call
    BAD_CALL = "bad-call"
    MISSING_FILE = "missing-file"
    FILE_EXISTS = "file-exists"
    NOT_A_FILE = "not-a-file"
    IO = "io-error"
    UNKNOWN_TASK = "unknown-task"
    MISSING_EXTRA = "missing-extra"
    OUT_OF_MEMORY = "out-of-memory"


_STEERING = frozenset(
    [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000))]
    + list("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


def steering(text: str) -> str:
    """The first character that no text of a file may hold, or "": controls, surrogates, line and bidi controls.

    A fixed list, because Python's own idea of what is printable changes with its version of Unicode.
    """
    return "" if text.isascii() and text.isprintable() else next((c for c in text if c in _STEERING), "")


def printable(text: object) -> str:
    """Escape everything in `text` that could steer a terminal; names from a file go through this."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


class AdapterPackError(Exception):
    """Base of all deliberate errors.

    Attributes:
        reason: a stable code from `Reason`, compared as a plain string (`error.reason == "truncated"`).
        where: a place such as `index.tasks[0].branches[3]` or `byte 4096`; empty where there is none.
        hint: what to do about it; empty where the message says it already.
    """

    exit_status = 1

    def __init__(self, message: str, reason: Reason, where: str = "", hint: str = "") -> None:
        self.message = printable(message)
        self.reason = str(reason.value)
        self.where = printable(where)
        self.hint = printable(hint)
        super().__init__(self.message, reason, where, hint)

    def __str__(self) -> str:
        place = f" (at {self.where})" if self.where else ""
        remedy = f"; {self.hint}" if self.hint else ""
        return f"{self.message}{place}{remedy}"


class CorruptFileError(AdapterPackError, ValueError):
    """The bytes are damaged, malformed or hostile."""


class UnsupportedVersionError(AdapterPackError, ValueError):
    """The file needs a newer reader: its version, a codec, a method or a required feature is unknown here."""


class BackboneMismatchError(AdapterPackError, ValueError):
    """The model is not the backbone that the adapter was made for."""


class UnsupportedAdapterError(AdapterPackError, ValueError):
    """The adapter does not fit this model, or cannot be expressed in the form asked for."""


class CallError(AdapterPackError):
    """The call itself is at fault: an unknown option, a file that exists already, a missing extra."""

    exit_status = 2


class MissingFileError(CallError, FileNotFoundError):
    """A path that does not exist."""


class Translating:
    """A `with` block whose errors become others.

    A class for each kind, because a generator makes entering and leaving three times as slow, and a load does it ten
    times.
    """

    __slots__ = ()

    def translate(self, error: BaseException) -> AdapterPackError | None:
        """What is raised in the place of an error; None lets it pass."""
        raise NotImplementedError

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        other = None if error is None else self.translate(error)
        if other is not None:
            raise other from error
