"""The safetensors form: readable by the plain library, canonical, strict about what it did not write."""

# ruff: noqa: E501 (a bad case a line)

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as library

from adapterpack.adapter import Branch, Site
from adapterpack.converters._base import Hints
from adapterpack.converters.safetensors import Safetensors, densified
from adapterpack.errors import AdapterPackError
from adapterpack.tensors import Dense
from tests._converter_samples import petl_adapter, rich_adapter, values_of

FORM = Safetensors()


def test_other_tools_see_plain_float32_tensors(tmp_path: Path) -> None:
    FORM.write(rich_adapter(), tmp_path / "x.safetensors", force=False)
    found = library.load_file(tmp_path / "x.safetensors")
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    assert {"head.bias", "blocks.0.attn.proj.consolidator.weight", "blocks.0.attn.proj.consolidator.1.weight"} <= set(
        found
    )
    assert found["blocks.0.attn.qkv[k].sparse.weight"].shape == (16, 16)
    ones = [b for b in rich_adapter().branches if b.method == "consolidator"]
    assert np.array_equal(found["blocks.0.attn.proj.consolidator.weight"], ones[0].tensors["weight"].dense())


def test_values_come_back_dense(tmp_path: Path) -> None:
    FORM.write(rich_adapter(), tmp_path / "x.safetensors", force=False)
    back = FORM.read(tmp_path / "x.safetensors", Hints()).adapter
    assert back.same_as(densified(rich_adapter()))
    assert all(np.array_equal(value, values_of(back)[key]) for key, value in values_of(rich_adapter()).items())


def test_a_single_number_keeps_its_shape(tmp_path: Path) -> None:
    branch = Branch(Site("blocks.0.scale"), "replace", {}, {"value": Dense(np.array(1.5, np.float32))})
    FORM.write(replace(rich_adapter(), branches=(branch,)), tmp_path / "x.safetensors", force=False)
    assert FORM.read(tmp_path / "x.safetensors", Hints()).adapter.branches[0].tensors["value"].shape == ()


def header(data: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def with_header(text: str, body: bytes = b"") -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + body


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (library.save({"vit.a": np.zeros(1), "vit.b": np.zeros(1)}), "unknown-source", "vit.a"),
        (library.save({"a": np.zeros(1)}, {"adapterpack": "{}"}), "unknown-source", "a"),
        (library.save({"a": np.zeros(1)}, {"adapterpack": '{"form":"dense/1","task":{}}'}), "missing-field", "branches"),
        (library.save({"a": np.zeros(1)}, {"adapterpack": '{"form":"dense/1","form":1}'}), "bad-source", "twice"),
        (with_header('{"a":1,"a":2}'), "bad-source", "twice"),
        (with_header('{"__metadata__":[]}'), "unknown-source", ""),
        (with_header("[]"), "unknown-source", ""),
        (with_header("{"), "bad-source", ""),
        (with_header("{}")[:9], "bad-source", "cut short"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "bad-source", "cut short"),
        (b"", "bad-source", ""),
        (with_header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]},"__metadata__":{"adapterpack":"{\\"form\\":\\"dense/1\\"}"}}'), "bad-source", ""),
    ],
)  # fmt: skip
def test_what_it_did_not_write(data: bytes, reason: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(AdapterPackError) as caught:
        FORM.read(tmp_path / "x.safetensors", Hints())
    assert caught.value.reason == reason and words in str(caught.value)


def test_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    FORM.write(petl_adapter(), path, force=False)
    data = path.read_bytes()
    row = header(data)["head.bias"]
    assert isinstance(row, dict)
    start = 8 + int.from_bytes(data[:8], "little") + row["data_offsets"][0]
    path.write_bytes(data[:start] + np.float32("nan").tobytes() + data[start + 4 :])
    with pytest.raises(AdapterPackError, match="NaN") as caught:
        FORM.read(path, Hints())
    assert caught.value.reason == "not-finite"
