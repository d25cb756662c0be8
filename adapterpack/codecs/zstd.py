"""Zstandard frames as the format allows them: one frame, its size declared, a window of at most 1 MiB.

The only module that imports zstandard. Source: RFC 8878; spec/codecs.md, "Sections".
"""

from __future__ import annotations

import zstandard

from adapterpack.errors import CorruptFileError, Reason

LEVEL = 19
WINDOW_LOG = 20
MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes) -> bytes:
    """One frame with its content size, without checksum or dictionary id (the container has its own checksum)."""
    plain = zstandard.ZstdCompressionParameters.from_level(LEVEL, source_size=len(data))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=len(data),
        window_log=min(plain.window_log, WINDOW_LOG),
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
        threads=0,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def decompress(frame: bytes, size: int) -> bytes:
    """The content of a frame that must hold exactly `size` bytes.

    The declared size is compared before anything is decoded, because zstandard's own `max_output_size` is ignored
    for frames that declare one.

    Raises:
        CorruptFileError: `zstd-frame`.
    """
    if frame[:4] != MAGIC:
        raise CorruptFileError("the section is no zstd frame", Reason.ZSTD_FRAME)
    try:
        head = zstandard.get_frame_parameters(frame)
        _check_head(head, frame[4], size)
        data = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).decompress(
            frame, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptFileError(
            f"zstd: {error}", Reason.ZSTD_FRAME, hint="the file is damaged; fetch it again"
        ) from error
    if len(data) != size:
        raise CorruptFileError(f"zstd gave {len(data):,} bytes, expected {size:,}", Reason.ZSTD_FRAME)
    return data


def _check_head(head: zstandard.FrameParameters, descriptor: int, size: int) -> None:
    if head.content_size != size:
        declared = "no" if head.content_size in (-1, zstandard.CONTENTSIZE_UNKNOWN) else f"{head.content_size:,}"
        raise CorruptFileError(f"a zstd frame declares {declared} bytes, expected {size:,}", Reason.ZSTD_FRAME)
    if head.window_size > 1 << WINDOW_LOG:
        raise CorruptFileError(f"a zstd frame asks for a window of {head.window_size:,} bytes", Reason.ZSTD_FRAME)
    if descriptor & 0x1F:
        raise CorruptFileError("a zstd frame has a dictionary, a checksum or reserved bits", Reason.ZSTD_FRAME)
