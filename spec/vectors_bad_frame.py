"""The bad vectors of the frame: magic, version, sizes, checksums, and the encoding of the index."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vectors_build import Parts, Row, with_frame, with_text

from adapterpack.container import deflate


def begin(b: Parts) -> Iterator[Row]:
    d = b.build()
    i1, i2, i3 = "item 1: safetensors test_header_too_small", "item 2: Soup#189", "item 3: PNG's signature"
    yield "empty", "truncated", b"", "A file of no bytes.", i1
    yield "magic-only-half", "truncated", d[:5], "The file ends within the magic.", i1
    yield "fixed-part-short", "truncated", d[:27], "One byte of the fixed part is missing.", i1
    yield "magic-zip", "other-format", b"PK\x03\x04" + d[4:], "A ZIP archive, such as an Android package.", i2
    yield "magic-gguf", "other-format", b"GGUF" + d[4:], "A GGUF model.", i2
    yield "magic-pickle", "other-format", b"\x80\x04" + d[4:], "A Python pickle.", i2
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    yield "magic-lfs-pointer", "other-format", lfs, "A Git LFS pointer instead of the file.", i2
    yield "magic-html", "other-format", b"<!DOCTYPE html><html></html>", "An error page instead of the file.", i2
    tensors = b"\x02\0\0\0\0\0\0\0{}" + bytes(20)
    yield "magic-safetensors", "other-format", tensors, "A safetensors file.", i2
    yield "magic-unknown", "bad-magic", b"ABCDEFGH" + d[8:], "No magic that is known.", i2
    yield (
        "magic-escapes",
        "bad-magic",
        b"\x1b[2J\x07abc" + d[8:],
        "Control bytes, which a message must escape.",
        "item 2: ggml llama/14381",
    )
    yield "magic-unix-text", "mangled-magic", d.replace(b"\r\n", b"\n"), "CR LF became LF.", i3
    yield "magic-dos-text", "mangled-magic", d.replace(b"\n", b"\r\n"), "LF became CR LF.", i3
    yield "magic-mac-text", "mangled-magic", d[:7] + b"\r" + d[8:], "LF became CR.", i3
    yield "magic-utf8", "mangled-magic", d.decode("latin-1").encode(), "Latin-1 became UTF-8.", i3
    yield "magic-utf8-replaced", "mangled-magic", b"\xef\xbf\xbd" + d[1:], "Decoded with replacement characters.", i3
    yield "magic-7-bit", "mangled-magic", bytes(v & 0x7F for v in d), "The high bits were lost.", i3
    yield "magic-ascii-replaced", "mangled-magic", b"?" + d[1:], "Encoded to ASCII with question marks.", i3


def frame(b: Parts) -> Iterator[Row]:
    d, text = b.build(), b.text
    i4, i6, i7 = "item 4: ggml llama/13943", "item 6: safetensors InvalidHeaderLength", "item 7"
    yield "version-0", "bad-version", with_frame(b, version=(0, 0)), "Major version 0.", i4
    yield "version-swapped", "bad-version", with_frame(b, version=(0, 1)), "The bytes of the version swapped.", i4
    yield "version-2", "newer-version", with_frame(b, version=(2, 0)), "A newer major version.", i4
    yield "flag-lowest", "reserved-bits", with_frame(b, flags=1), "A reserved flag.", "item 5"
    yield "flag-highest", "reserved-bits", with_frame(b, flags=0x8000), "A reserved flag.", "item 5"

    def sized(**sizes: int) -> bytes:
        return with_frame(b, sizes=sizes)

    stored = deflate.compress(text)
    yield "head-0", "head-size", sized(head=0), "A head of no bytes.", i6
    yield "head-too-small", "head-size", sized(head=28 + len(stored) - 4), "A head smaller than its index.", i6
    yield "head-odd", "head-size", sized(head=28 + len(stored) + 6), "A table that is no multiple of 4 bytes.", i6
    yield "head-beyond-file", "truncated", sized(head=28 + len(stored) + 4 * 1000), "A head larger than the file.", i6
    yield "head-beyond-limit", "limit-exceeded", sized(head=(4 << 20) + 1), "A head above 4 MiB.", i6
    yield "head-huge", "limit-exceeded", sized(head=0xFFFFFFFF), "Sizes that overflow when added in 32 bits.", i6
    yield "stored-beyond-head", "head-size", sized(stored=0xFFFFFFF0), "An index larger than the head.", i6
    yield "index-beyond-limit", "limit-exceeded", sized(index=(1 << 20) + 1), "An index above 1 MiB.", i6
    yield "index-longer", "index-compression", sized(index=len(text) - 1), "More comes out than declared.", i7
    yield "index-shorter", "index-compression", sized(index=len(text) + 1), "Less comes out than declared.", i7
    yield "index-bomb", "index-compression", _bomb(b), "A megabyte comes out where 100 bytes are declared.", "item 31"
    extra, half = stored + bytes(4), stored[: len(stored) // 2]
    yield "deflate-trailing", "index-compression", with_frame(b, deflated=extra), "Bytes after the last block.", i7
    yield "deflate-truncated", "index-compression", with_frame(b, deflated=half), "The last block does not end.", i7
    yield "deflate-block-type", "index-compression", with_frame(b, deflated=b"\x07" * 8), "Block type 3.", "item 31"
    wrapped = zlib.compress(text)
    yield "deflate-zlib", "index-compression", with_frame(b, deflated=wrapped), "A zlib wrapper around it.", "item 31"
    far = b"\x03" + b"\xff" * 8
    yield "deflate-invalid", "index-compression", with_frame(b, deflated=far), "Symbols that do not exist.", "item 31"
    table = _table(b)
    i18, i33 = "item 18: parquet out_of_range_element_count", "item 33"
    yield "table-short", "head-size", with_frame(b, table=table[:-4]), "A digest is cut short.", "item 33: numcodecs"
    yield "table-long", "head-size", with_frame(b, table=table + bytes(4)), "A checksum too many.", i18
    yield "table-missing", "head-size", with_frame(b, table=b""), "No checksums at all.", i33
    yield "tail", "trailing-bytes", with_frame(b, tail=b"\0"), "A byte after the last payload.", "item 8: gguf-py"
    yield "tail-zip", "trailing-bytes", with_frame(b, tail=b"PK\x05\x06" + bytes(18)), "A polyglot's tail.", "item 8"
    yield "payload-cut", "truncated", d[:-1], "The last byte is missing.", "item 9"
    yield "head-cut", "truncated", d[:100], "The file ends within its head.", "item 9"
    yield "head-checksum", "checksum-mismatch", sized(checksum=0), "The head's checksum is another.", i33
    wrong = bytes([table[0] ^ 1]) + table[1:]
    yield "segment-checksum", "checksum-mismatch", with_frame(b, table=wrong), "A segment's checksum is another.", i33
    other = [bytes(32)]
    yield "digest", "digest-mismatch", with_frame(b, digests=other), "Checksums fit, the digest does not.", i33
    swapped = with_frame(b, digests=[b.digests[0][::-1]])
    yield "digest-reversed", "digest-mismatch", swapped, "The digest's bytes in another order.", i33


def _bomb(b: Parts) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return with_frame(b, deflated=packer.compress(bytes(1 << 20)) + packer.flush(), sizes={"index": 100})


def _table(b: Parts) -> bytes:
    return b"".join(struct.pack("<I", zlib.crc32(p)) for p in b.payloads) + b"".join(b.digests)


def encoding(b: Parts) -> Iterator[Row]:
    text = b.text
    i11, i12 = "item 11: safetensors test_header_invalid_header_non_utf8", "item 12"

    def named(spelling: bytes) -> bytes:
        return with_text(b, text.replace(b'"name":"task"', b'"name":"' + spelling + b'"'))

    yield "latin-1", "index-encoding", named(b"b\xe4r"), "A name in Latin-1.", i11
    yield "overlong", "index-encoding", named(b"\xc0\xaf"), "An overlong UTF-8 sequence.", i11
    yield "surrogate-bytes", "index-encoding", named(b"\xed\xa0\x80"), "A surrogate encoded in UTF-8.", i11
    yield "bom", "index-encoding", with_text(b, b"\xef\xbb\xbf" + text), "A byte-order mark.", "item 11: CPython json"
    utf16 = text.decode().encode("utf-16")
    yield "utf-16-bom", "index-encoding", with_text(b, utf16), "UTF-16 with a mark.", "item 11: CPython json"
    yield (
        "utf-16-bare",
        "index-syntax",
        with_text(b, utf16[2:]),
        "UTF-16 without a mark: NULs.",
        "item 11: CPython json",
    )
    yield "surrogate-escape", "bad-name", named(rb"\ud800"), "A lone surrogate as an escape.", i12 + ": CPython json"
    yield "nul-escape", "bad-name", named(rb"a\u0000b"), "NUL in a name.", i12
    yield "escape-escape", "bad-name", named(rb"\u001b[31m"), "An escape sequence for terminals.", i12 + ": gguf_dump"
    yield "raw-control", "index-syntax", named(b"a\tb"), "An unescaped control character.", i12
    yield "delete", "bad-name", named(b"a\x7f"), "The character DEL.", i12
    yield "c1-control", "bad-name", named("a\x9bm".encode()), "A control character beyond ASCII.", i12
    yield "bidi", "bad-name", named("a\u202egpj".encode()), "Right-to-left override.", i12
    yield "line-separator", "bad-name", named("a\u2028b".encode()), "A line separator.", i12
    key = text.replace(b'"labels":', '"metadata":{"\u202e":1},"labels":'.encode())
    yield "bidi-key", "bad-name", with_text(b, key), "Right-to-left override in a key.", i12
