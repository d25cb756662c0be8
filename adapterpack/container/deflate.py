"""The index's compression: raw DEFLATE with a preset dictionary, and an encoder whose bytes never vary.

zlib's output differs between zlib, zlib-ng and versions of either, so the writer has its own small encoder: one block
of fixed Huffman codes, greedy longest match, nearest on a tie. Any inflater that takes a dictionary reads it.
Source: RFC 1951 §3.2.6; spec/README.md, "Index compression".
"""

from __future__ import annotations

import zlib

from adapterpack.errors import CorruptFileError, Reason

# What indexes are made of, commonest last (near matches are shorter). Part of the format: version 1 never changes it.
DICTIONARY = (
    b'"value":{"segment":0,"shape":[1,1,768]}}},{"blocks":[0,12],"method":"replace","params":{},"sites":["blocks.*.norm1",'
    b'"blocks.*.norm2"],"tensors":{"bias":{"segment":0,"shape":[768]},"weight":{"segment":0,"shape":[768]}}},'
    b'{"method":"replace","params":{},"sites":["norm"],"tensors":{"cls_token","pos_embed","patch_embed.proj"'
    b'"blocks":[0,24],"blocks":[0,9],"method":"adapter","params":{"scale":1.0,"tap":"output"},"down_bias":{"up_bias":{'
    b'"method":"sparse","params":{},"sites":["blocks.*.attn.qkv[k]","blocks.*.attn.proj","blocks.*.mlp.fc1",'
    b'"blocks.*.mlp.fc2","blocks.*.attn.qkv"],"tensors":{"weight":{"segment":1,"shape":[3072,768],[768,3072],[2304,2],'
    b'[768,2],[3072,2],[768,8],[1024,384,192,64,16]"method":"consolidator","params":{"groups":384,"reorder":false},true}'
    b'"features":["requires":["metadata":{"dataset":"accuracy":"interpolation":"bilinear","crop_pct":0.875,0.9,'
    b'"crop_mode":"center","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]'
    b'"params":{"compression":"none","entries":"values":{"codec":"raw","dtype":"float16"bfloat16"},"codec":"sparse"'
    b'"params":{"bits":2,"compression":"zstd","group":128,"levels":"unit","offset":false,"scale":"float16"}'
    b'"codec":"codebook","codec":"predictive-signs","join":1,2,12,"kinds":2,"lambda":40,90,120,"pooled":true,"coded":'
    b'"labels":{"count":100,"segment":2},"bytes":147840,"codec":"labels","params":{}}'
    b'"method":"adaptformer","params":{"scale":1.0},"sites":["blocks.*.mlp"],'
    b'{"backbone":{"fingerprint":"sha256:","name":"vit_base_patch16_224.augreg_in21k"dino"clip_laion2b"deit_"large"small"tiny'
    b'{"backbone":{"name":"vit_base_patch16_224.orig_in21k"},"tasks":[{"data":{"crop_mode":"squash","crop_pct":1.0,'
    b'"input_size":[3,224,224],"interpolation":"bicubic","mean":[0.0,0.0,0.0],"std":[1.0,1.0,1.0]},"groups":[{"blocks":[0,12],'
    b'"method":"lora","params":{"scale":10.0},"sites":["blocks.*.attn.qkv[q]","blocks.*.attn.qkv[v]"],"tensors":{"down":'
    b'{"segment":0,"shape":[32,768]},"up":{"segment":0,"shape":[768,32]}}}],"head":{"bias":{"segment":1,"shape":[100]},'
    b'"weight":{"segment":1,"shape":[100,768]}},"metadata":{"source":{"format":"petl-vit"}},"method":"lora","name":"",'
    b'"segments":[{"bytes":,"codec":"signs","params":{"compression":"zstd","group":0,"levels":"normal-l1","offset":true,'
    b'"scale":"float32"}},{"bytes":,"codec":"raw","params":{"compression":"zstd","dtype":"float32"}}]}]}'
)

_MIN, _MAX, _FAR = 3, 258, 32_768
_CANDIDATES = 32
_LENGTHS = ([(3 + i, 0) for i in range(8)]
            + [(11 + (i << (g + 1)) + ((1 << (g + 3)) - 8), g + 1) for g in range(5) for i in range(4)])  # fmt: skip
_LENGTHS[-1:] = [_LENGTHS[-1], (258, 0)]
_DISTANCES = [(1 + i, 0) for i in range(4)] + [(1 + ((2 + i) << (g + 1)), g + 1) for g in range(13) for i in range(2)]


class _Bits:
    """A bit stream, least significant bit first, as DEFLATE wants it."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._hold = self._count = 0

    def put(self, value: int, count: int) -> None:
        self._hold |= value << self._count
        self._count += count
        while self._count >= 8:
            self.out.append(self._hold & 0xFF)
            self._hold >>= 8
            self._count -= 8

    def huffman(self, code: int, count: int) -> None:
        """Huffman codes go most significant bit first."""
        self.put(int(f"{code:0{count}b}"[::-1], 2), count)

    def symbol(self, value: int) -> None:
        """A literal/length symbol in the fixed code."""
        if value < 144:
            self.huffman(0x30 + value, 8)
        elif value < 256:
            self.huffman(0x190 + value - 144, 9)
        elif value < 280:
            self.huffman(value - 256, 7)
        else:
            self.huffman(0xC0 + value - 280, 8)

    def finish(self) -> bytes:
        if self._count:
            self.out.append(self._hold & 0xFF)
        return bytes(self.out)


def compress(data: bytes) -> bytes:
    """`data` as one fixed-Huffman block; the same bytes on every machine."""
    text = DICTIONARY + data
    seen: dict[bytes, list[int]] = {}
    for i in range(len(DICTIONARY) - _MIN + 1):
        seen.setdefault(text[i : i + _MIN], []).append(i)
    out = _Bits()
    out.put(0b011, 3)  # final block, fixed codes
    known = len(DICTIONARY) - _MIN + 1
    at = len(DICTIONARY)
    while at < len(text):
        for i in range(max(known, 0), at):
            seen.setdefault(text[i : i + _MIN], []).append(i)
        known = at
        length, distance = _longest(text, at, seen.get(text[at : at + _MIN], ()))
        if length:
            _put_match(out, length, distance)
            at += length
        else:
            out.symbol(text[at])
            at += 1
    out.symbol(256)
    return out.finish()


def _longest(text: bytes, at: int, candidates: list[int] | tuple[()]) -> tuple[int, int]:
    best = (0, 0)
    room = min(_MAX, len(text) - at)
    for start in reversed(candidates[-_CANDIDATES:]):
        if at - start > _FAR:
            break
        length = _MIN
        while length < room and text[start + length] == text[at + length]:
            length += 1
        if _MIN <= length <= room and length > best[0]:
            best = (length, at - start)
    return best


def _put_match(out: _Bits, length: int, distance: int) -> None:
    code = max(i for i, (base, _) in enumerate(_LENGTHS) if base <= length)
    out.symbol(257 + code)
    out.put(length - _LENGTHS[code][0], _LENGTHS[code][1])
    code = max(i for i, (base, _) in enumerate(_DISTANCES) if base <= distance)
    out.huffman(code, 5)
    out.put(distance - _DISTANCES[code][0], _DISTANCES[code][1])


def decompress(data: bytes, size: int) -> bytes:
    """Inflate exactly `size` bytes from exactly `data`.

    Raises:
        CorruptFileError: `index-compression`.
    """
    inflater = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    try:
        text = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise CorruptFileError(f"the index cannot be inflated: {error}", Reason.INDEX_COMPRESSION) from error
    if len(text) != size or not inflater.eof or inflater.unused_data:
        message = f"the index inflates to {len(text):,} bytes or more, its header says {size:,}"
        raise CorruptFileError(message, Reason.INDEX_COMPRESSION)
    return text
