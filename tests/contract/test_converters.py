"""What every converter promises, over the registry: read → write → read is the identity, and errors are our own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from adapterpack.adapter import Adapter
from adapterpack.converters import CONVERTERS, recognise
from adapterpack.converters._base import Converter, Hints
from adapterpack.errors import AdapterPackError, CallError, UnsupportedAdapterError
from tests._converter_samples import backbone, petl_adapter, rich_adapter, values_of

SUFFIX = {"petl-vit": ".bin", "checkpoint": ".ckpt", "safetensors": ".safetensors", "peft": "", "adapterhub": ""}
FOLDERS = {"peft": "adapter_model.safetensors", "adapterhub": "adapter.safetensors"}  # forms that are folders
SAMPLES = {
    "lora": petl_adapter(),
    "lora-4bit-bihead": petl_adapter("lora", 4, bihead=True),
    "adaptformer-8bit": petl_adapter("adaptformer", 8),
    "adaptformer-bihead": petl_adapter("adaptformer", 2, bihead=True, dim=2),
    "rich": rich_adapter(),
}
# what a form has no place for
CANNOT = {
    "petl-vit": {"rich"},
    "peft": {"adaptformer-8bit", "adaptformer-bihead", "rich"},
    "adapterhub": {"rich"},
}
HINTS = Hints(backbone=backbone())


@pytest.fixture(params=list(CONVERTERS))
def converter(request: pytest.FixtureRequest) -> Converter:
    return CONVERTERS[request.param]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file in a folder, by its path inside."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(converter: Converter, adapter: Adapter, folder: Path) -> Path:
    out = folder / f"sample{SUFFIX[converter.name]}"
    converter.write(adapter, out, force=False)
    return out


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_was_written_is_read_back(converter: Converter, sample: str, tmp_path: Path) -> None:
    adapter = SAMPLES[sample]
    if sample in CANNOT.get(converter.name, ()):
        with pytest.raises(UnsupportedAdapterError) as caught:
            written(converter, adapter, tmp_path)
        assert caught.value.reason == "not-expressible"
        assert list(tmp_path.iterdir()) == []
        return
    out = written(converter, adapter, tmp_path)
    assert recognise(out) is converter
    first = converter.read(out, HINTS).adapter
    assert values_of(first).keys() == values_of(adapter).keys()
    assert all(np.array_equal(one, values_of(adapter)[key]) for key, one in values_of(first).items())
    again = tmp_path / f"again{SUFFIX[converter.name]}"
    converter.write(first, again, force=False)
    assert converter.read(again, HINTS).adapter.same_as(first)


def test_the_same_adapter_gives_the_same_bytes(converter: Converter, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        written(converter, petl_adapter(), folder)
    assert contents(one) and contents(one) == contents(other)


def test_an_existing_file_stays_without_force(converter: Converter, tmp_path: Path) -> None:
    out = written(converter, petl_adapter(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CallError) as caught:
        converter.write(petl_adapter(bits=2), out, force=False)
    assert caught.value.reason == "file-exists"
    assert contents(tmp_path) == before
    converter.write(petl_adapter(bits=2), out, force=True)
    changed = contents(tmp_path)
    assert changed.keys() == before.keys() and changed != before


def test_the_caller_describes(converter: Converter, tmp_path: Path) -> None:
    out = written(converter, petl_adapter(), tmp_path)
    hints = dataclasses.replace(HINTS, task="mine", backbone_name="my_vit", labels=tuple("abcde"))
    adapter = converter.read(out, hints).adapter
    assert (adapter.name, adapter.backbone.name, adapter.labels) == ("mine", "my_vit", tuple("abcde"))
    with pytest.raises(AdapterPackError) as caught:
        converter.read(out, dataclasses.replace(HINTS, labels=("a", "b")))
    assert caught.value.reason == "bad-labels"


def test_damage_is_named_or_harmless(converter: Converter, tmp_path: Path) -> None:
    """Any change of bytes gives an adapter or an error of ours, nothing else."""
    out = written(converter, petl_adapter(bihead=True), tmp_path)
    files = [out / name for name in ("adapter_config.json", FOLDERS[converter.name])] if out.is_dir() else [out]
    for file in files:
        assert_damage_is_harmless(converter, out, file)


def assert_damage_is_harmless(converter: Converter, out: Path, file: Path) -> None:
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(200):
        bad = bytearray(data)
        if trial % 3 == 0:
            bad = bad[: int(rng.integers(0, len(bad)))]
        else:
            for at in rng.integers(0, len(bad), 1 + trial % 4):
                bad[at] = int(rng.integers(0, 256))
        file.write_bytes(bad)
        converter.recognise(out)
        try:
            converter.read(out, HINTS)
        except AdapterPackError as error:
            assert str(error)
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["nothing.bin", "folder.bin"])
def test_recognise_never_raises(converter: Converter, name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.bin").mkdir()
    assert converter.recognise(tmp_path / name) is False
