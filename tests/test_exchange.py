"""`pack` and `unpack` as a caller sees them: who wins over whom, what is refused, and what comes back to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapterpack
from adapterpack.adapter import Adapter, Backbone, Branch, DataSettings, Head, Site
from adapterpack.converters._base import Hints, as_described
from adapterpack.converters.petl_vit import PetlVit
from adapterpack.errors import (
    AdapterPackError,
    BackboneMismatchError,
    CallError,
    CorruptFileError,
    MissingFileError,
    UnsupportedAdapterError,
)
from adapterpack.tensors import Dense, Quantized, Sparse
from tests._converter_samples import CLASSES, DEPTH, WIDTH, normal, petl_adapter

SIZE = {"depth": DEPTH, "width": WIDTH}
USUAL = "backbone: small_vit\nbit: 1\ndataset: cifar\ndim: 4\nmethod: lora\nnum_class: 5\nscale: 10.0\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A PETL-ViT pair of 2 blocks of width 16."""
    PetlVit().write(petl_adapter(), tmp_path / "x.bin", force=False)
    assert (tmp_path / "x.yaml").read_text() == USUAL
    return tmp_path / "x.bin"


def refused(reason: str, *words: str, kind: type[AdapterPackError] = CallError, **call: Any) -> AdapterPackError:
    """`pack` refuses this call with an error of that kind, which says these words, and writes nothing."""
    out = Path(call["out"])
    with pytest.raises(kind) as caught:
        adapterpack.pack(**call)
    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not out.exists() or call.get("force")
    return caught.value


# --- the YAML's own spelling


ODD = {
    "line ends of Windows": USUAL.replace("\n", "\r\n"),
    "no final newline": USUAL.removesuffix("\n"),
    "another order": "".join(sorted(USUAL.splitlines(keepends=True), reverse=True)),
    "an exponent": USUAL.replace("10.0", "1e1"),
    "a whole number": USUAL.replace("10.0", "10"),
    "mixed line ends": USUAL.replace("\n", "\r\n", 3),
    "old line ends": USUAL.replace("\n", "\r"),
    "comments": '# made by "hand" \\n\n' + USUAL + "  #\ttail\n#\n",
}


@pytest.mark.parametrize("what", ODD)
def test_a_yaml_spelled_otherwise_comes_back_byte_for_byte(what: str, source: Path) -> None:
    source.with_suffix(".yaml").write_bytes(ODD[what].encode())
    packed, back = source.with_name("x.apk"), source.with_name("y.bin")
    adapterpack.pack(source, packed, settings=SIZE)
    adapterpack.unpack(packed, back, to="petl-vit")
    assert back.read_bytes() == source.read_bytes()
    assert back.with_suffix(".yaml").read_bytes() == ODD[what].encode()
    kept = adapterpack.open(packed).read().metadata["source"]
    assert json.loads(f'"{kept["yaml"]}"') == ODD[what]
    scales = {branch.params["scale"] for branch in adapterpack.open(packed).read().branches}
    assert scales == {10.0}


def test_a_setting_of_the_caller_drops_the_spelling(source: Path) -> None:
    source.with_suffix(".yaml").write_text(ODD["another order"])
    packed, back = source.with_name("x.apk"), source.with_name("y.bin")
    adapterpack.pack(source, packed, settings={**SIZE, "scale": 1})
    assert adapterpack.open(packed).read().metadata["source"] == {"format": "petl-vit"}
    adapterpack.unpack(packed, back, to="petl-vit")
    assert back.with_suffix(".yaml").read_text() == USUAL.replace("10.0", "1.0")


def test_a_long_yaml_is_refused_before_it_is_kept(source: Path) -> None:
    source.with_suffix(".yaml").write_text(USUAL + "#" * 40_000)
    with pytest.raises(AdapterPackError) as caught:
        adapterpack.pack(source, source.with_name("x.apk"), settings=SIZE)
    assert caught.value.reason == "limit-exceeded"


# --- what is packed already


def test_a_packed_adapter_is_packed_in_another_way(source: Path, tmp_path: Path) -> None:
    adapterpack.pack(source, tmp_path / "a.apk", settings=SIZE)
    before = adapterpack.open(tmp_path / "a.apk")
    options: dict[str, Any] = {"task": "new", "metadata": {"a": 1}, "profile": "fast"}
    (tmp_path / "any name").write_bytes((tmp_path / "a.apk").read_bytes())
    for number, name in enumerate(("a.apk", "any name")):
        out = tmp_path / f"{number}.adapterpack"
        adapterpack.pack(tmp_path / name, out, **options)
        found = adapterpack.open(out)
        assert (found.tasks, found.digest, found.read().metadata["a"]) == (("new",), before.digest, 1)
    adapterpack.unpack(tmp_path / "0.adapterpack", tmp_path / "y.bin", to="petl-vit")
    assert (tmp_path / "y.bin").read_bytes() == source.read_bytes()
    adapterpack.pack(petl_adapter(bits=2), tmp_path / "two.apk", task="two")
    adapterpack.pack(tmp_path / "two.apk", tmp_path / "one.apk", bits=1)
    assert adapterpack.open(tmp_path / "one.apk").tasks == ("two",)
    refused("bad-call", "two.apk is read", source=tmp_path / "two.apk", out=tmp_path / "two.apk", force=True)
    refused("bad-call", "packed already", source=tmp_path / "two.apk", out=tmp_path / "x.apk", settings={"scale": 2.0})
    adapterpack.bundle([tmp_path / "two.apk", tmp_path / "0.adapterpack"], tmp_path / "all.apk")
    refused("bad-call", "all.apk has 2 tasks", "split", source=tmp_path / "all.apk", out=tmp_path / "x.apk")
    (tmp_path / "cut.apk").write_bytes((tmp_path / "a.apk").read_bytes()[:-1])
    refused("truncated", "cut.apk", kind=CorruptFileError, source=tmp_path / "cut.apk", out=tmp_path / "x.apk")


# --- preprocessing


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A backbone of 3 blocks of 48 features on 32×32 images, with settings of its own."""
    pytest.importorskip("torch")
    from safetensors.torch import save_file

    from tests._vit import vit

    save_file(vit().state_dict(), tmp_path / "vit.safetensors")
    about = {
        "timm_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
        "mean": [0.4, 0.4, 0.4],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
    }
    (tmp_path / "vit.json").write_text(json.dumps(about))
    return tmp_path / "vit.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A state dict with PETL-ViT's names for that backbone."""
    torch = pytest.importorskip("torch")
    state = {"head.weight": normal(1, 4, 48), "head.bias": normal(2, 4)}
    for i in range(3):
        for part in "qv":
            stem = f"blocks.{i}.attn.lora_{part}.adapter"
            state |= {f"{stem}_down.weight": normal(i, 4, 48), f"{stem}_up.weight": normal(i, 48, 4)}
    content = {name: torch.from_numpy(values) for name, values in state.items()}
    # a trainer's own arguments of these names mean anything
    args = {"scale": 1.0, "bit": 1, "input_size": 224, "mean": True}
    torch.save({"model": content, "args": args}, tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def in_that_backbone(**changes: Any) -> Adapter:
    """An adapter in memory that fits it."""
    from tests import _vit

    return _vit.adapter(_vit.lora_qv(), **{"backbone": Backbone(), **changes})


def data_of(path: Path) -> DataSettings:
    data = adapterpack.open(path).read().data
    assert data is not None
    return data


def test_the_backbone_gives_the_size_and_the_recipe_the_rest(checkpoint: Path, backbone: Path, tmp_path: Path) -> None:
    adapterpack.pack(checkpoint, tmp_path / "a.apk")
    assert data_of(tmp_path / "a.apk") == DataSettings()
    adapterpack.pack(checkpoint, tmp_path / "b.apk", backbone=backbone)
    assert data_of(tmp_path / "b.apk") == DataSettings((3, 32, 32))
    from PIL import Image

    from adapterpack.runtime.backbone import create_backbone
    from adapterpack.runtime.images import read_image, top_classes

    Image.new("RGB", (50, 40), (9, 99, 200)).save(tmp_path / "p.png")
    with adapterpack.load(tmp_path / "b.apk", create_backbone(backbone).model) as loaded:
        assert loaded.data is not None
        assert top_classes(loaded.model, read_image(tmp_path / "p.png", loaded.data), 2, None)


def test_a_head_alone_takes_the_backbones_preprocessing(backbone: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"head.weight": torch.ones(4, 48), "head.bias": torch.ones(4)}, tmp_path / "head.pt")
    adapterpack.pack(tmp_path / "head.pt", tmp_path / "a.apk", backbone=backbone)
    expected = DataSettings((3, 32, 32), (0.4,) * 3, (0.2,) * 3, "bilinear", 0.9, "squash")
    assert data_of(tmp_path / "a.apk") == expected
    adapterpack.pack(in_that_backbone(), tmp_path / "b.apk", backbone=backbone)
    assert data_of(tmp_path / "b.apk") == expected


def test_an_adapter_that_describes_itself_keeps_its_preprocessing(backbone: Path, tmp_path: Path) -> None:
    own = DataSettings((3, 64, 64), (0.1,) * 3, (0.3,) * 3)
    adapterpack.pack(replace(in_that_backbone(), data=own), tmp_path / "a.apk", backbone=backbone)
    assert data_of(tmp_path / "a.apk") == own


# --- what fits the backbone


def unfit(what: str) -> Adapter:
    from tests import _vit

    made = in_that_backbone()
    more = {
        "a block too many": _vit.lora("blocks.3.attn.proj"),
        "rows": _vit.lora("blocks.0.attn.proj", out=_vit.WIDTH - 3),
        "width": _vit.lora("blocks.0.attn.proj", 16, 16),
    }
    if what in more:
        return replace(made, branches=(*made.branches, more[what]))
    return replace(made, head=Head(Dense(normal(1, 4, 47)), None))


UNFIT = [
    ("a block too many", "missing-site", "blocks.3.attn.proj"),
    ("rows", "site-shape", "blocks.0.attn.proj: the adapter needs a weight of [45, 48], the model has [48, 48]"),
    ("width", "site-shape", "needs a weight of [16, 16], the model has [48, 48]"),
    ("head", "site-shape", "head: weight has shape [4, 47], expected [classes, 48]"),
]


@pytest.mark.parametrize(("what", "reason", "told"), UNFIT, ids=[what for what, _, _ in UNFIT])
def test_what_does_not_fit_the_backbone_is_not_packed(
    what: str, reason: str, told: str, backbone: Path, tmp_path: Path
) -> None:
    """By the same errors as `load`."""
    from tests import _vit

    adapter, out = unfit(what), tmp_path / "x.apk"
    error = refused(reason, "trained on another backbone" if reason == "site-shape" else "",
                    kind=UnsupportedAdapterError, source=adapter, out=out, backbone=backbone)  # fmt: skip
    assert told in str(error) and not out.exists()
    adapterpack.pack(adapter, out)
    with pytest.raises(UnsupportedAdapterError) as caught:
        adapterpack.load(out, _vit.vit(), check_fingerprint=False)
    assert str(caught.value) == str(error)


def test_another_backbone_than_the_adapter_records(backbone: Path, tmp_path: Path) -> None:
    """Its fingerprint is never replaced."""
    own = Backbone("its own", f"sha256:{7:064x}")
    adapterpack.pack(in_that_backbone(backbone=own), tmp_path / "own.apk")
    adapterpack.unpack(tmp_path / "own.apk", tmp_path / "own.ckpt", to="checkpoint")
    for source in (in_that_backbone(backbone=own), tmp_path / "own.ckpt"):
        call = {"source": source, "out": tmp_path / "x.apk", "backbone": backbone}
        error = refused("fingerprint-mismatch", "was trained on its own (sha256:0", kind=BackboneMismatchError, **call)
        assert error.exit_status == 1


def test_a_name_without_weights_does_not_go_with_a_fingerprint() -> None:
    own = Backbone("its own", f"sha256:{7:064x}")
    for given, expected in (
        (Hints(backbone_name="new"), own),
        (Hints(backbone_name="new", fingerprint=own.fingerprint), Backbone("new", own.fingerprint)),
    ):
        assert as_described(petl_adapter(), replace(given, task="x")).backbone == Backbone("new", given.fingerprint)
        assert as_described(replace(petl_adapter(), backbone=own), given).backbone == expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights can be downloaded."""
    from adapterpack.runtime import backbone as module

    monkeypatch.setattr(module, "_hub_answers", lambda: False)
    monkeypatch.setattr(module, "_in_cache", lambda name: False)


def test_a_name_of_timm_is_enough_to_compare_shapes(offline: None, tmp_path: Path) -> None:
    error = refused("site-shape", "the model has [192, 192]", kind=UnsupportedAdapterError, source=in_that_backbone(),
                    out=tmp_path / "x.apk", backbone="vit_tiny_patch16_224")  # fmt: skip
    assert "blocks.0.attn.qkv[q]" in str(error) and not (tmp_path / "x.apk").exists()


@pytest.mark.parametrize("missing", ["torch", "timm"])
def test_a_backbone_without_the_packages_that_it_needs(missing: str, source: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import adapterpack
call = {{"settings": {SIZE!r}}}
adapterpack.pack({str(source)!r}, {str(tmp_path / "x.apk")!r}, **call)
try:
    adapterpack.pack({str(source)!r}, {str(tmp_path / "y.apk")!r}, backbone="vit_tiny_patch16_224", **call)
except adapterpack.CallError as error:
    print(error.reason, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    needs = f"missing-extra --backbone (backbone=) needs {missing}; pip install 'adapterpack[torch]'"
    assert (done.stdout.strip(), done.stderr) == (needs, "") and not (tmp_path / "y.apk").exists()


def test_no_weights_to_compare_a_fine_tuned_model_with(offline: None, checkpoint: Path, tmp_path: Path) -> None:
    call = {"out": tmp_path / "x.apk", "backbone": "vit_tiny_patch16_224", "settings": {"as": "auto"}}
    error = refused("bad-call", "the weights of vit_tiny_patch16_224 cannot be downloaded", source=checkpoint, **call)
    assert ".safetensors" in error.hint and "none is given" not in str(error)


SAID: list[tuple[dict[str, Any], DataSettings]] = [
    ({"input_size": "3x64x48"}, DataSettings((3, 64, 48))),
    ({"input_size": 64}, DataSettings((3, 64, 64))),
    ({"input_size": (3, 64, 64), "mean": "0.5,0.5,0.25"}, DataSettings((3, 64, 64), (0.5, 0.5, 0.25))),
    ({"std": [1, 0.5, 0.25]}, DataSettings((3, 32, 32), std=(1.0, 0.5, 0.25))),
    ({"input_size": "1x8x8", "mean": 0.5, "std": 0.5}, DataSettings((1, 8, 8), (0.5,), (0.5,))),
]


@pytest.mark.parametrize(("said", "expected"), SAID)
def test_the_caller_wins(
    said: dict[str, Any], expected: DataSettings, checkpoint: Path, backbone: Path, tmp_path: Path
) -> None:
    adapterpack.pack(checkpoint, tmp_path / "a.apk", backbone=backbone, settings=said)
    assert data_of(tmp_path / "a.apk") == expected


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".safetensors", ""])
def test_the_caller_wins_over_every_form(suffix: str, source: Path, tmp_path: Path) -> None:
    from adapterpack.converters import CONVERTERS

    given: Path | Adapter = petl_adapter() if not suffix else tmp_path / f"x{suffix}"
    if suffix in (".ckpt", ".safetensors"):
        name = {".ckpt": "checkpoint", ".safetensors": "safetensors"}[suffix]
        CONVERTERS[name].write(petl_adapter(), tmp_path / f"x{suffix}", force=False)
    said: dict[str, Any] = {"input_size": 32, "mean": (0.5, 0.5, 0.5)} | (SIZE if suffix == ".bin" else {})
    adapterpack.pack(given, tmp_path / "a.apk", settings=said)
    assert data_of(tmp_path / "a.apk") == DataSettings((3, 32, 32), (0.5, 0.5, 0.5))
    refused("bad-call", "reorder", source=given, out=tmp_path / "b.apk", settings={**said, "reorder": False})


@pytest.mark.parametrize(
    "said",
    [
        {"input_size": "3x64"},
        {"input_size": "3x0x64"},
        {"input_size": "3x64x64x1"},
        {"input_size": 0},
        {"input_size": True},
        {"input_size": 1 << 30},
        {"input_size": "big"},
        {"mean": "0.5,0.5"},
        {"mean": "0.5,0.5,inf"},
        {"mean": [0.5, 0.5, True]},
        {"mean": {}},
        {"std": "0.5,0.5,0"},
        {"std": "0.5,0.5,-1"},
        {"std": ""},
        {"input_size": "1x32x32"},
    ],
)
def test_bad_preprocessing_is_a_call_at_fault(said: dict[str, Any], source: Path) -> None:
    error = refused("bad-call", source=source, out=source.with_name("x.apk"), settings={**SIZE, **said})
    assert next(iter(said)) in str(error)


def test_no_preprocessing_is_made_up(tmp_path: Path) -> None:
    adapter = replace(petl_adapter(), data=None)
    refused("bad-call", "mean", source=adapter, out=tmp_path / "x.apk", settings={"input_size": 32})
    said = {"input_size": 32, "mean": "0,0,0", "std": "1,1,1"}
    adapterpack.pack(adapter, tmp_path / "x.apk", settings=said)
    assert data_of(tmp_path / "x.apk") == DataSettings((3, 32, 32))


# --- the output is none of the inputs


@pytest.mark.parametrize("name", ["x.bin", "x.yaml", "link.bin", "./x.yaml"])
@pytest.mark.parametrize("force", [False, True])
def test_pack_does_not_overwrite_what_it_reads(name: str, force: bool, source: Path) -> None:
    os.link(source, source.with_name("link.bin"))
    before = {path: path.read_bytes() for path in source.parent.iterdir()}
    out = source.parent / name
    with pytest.raises(CallError, match="read") as caught:
        adapterpack.pack(source, out, settings=SIZE, force=force)
    assert caught.value.reason == "bad-call" and str(out) in str(caught.value)
    assert {path: path.read_bytes() for path in source.parent.iterdir()} == before


def test_pack_does_not_overwrite_backbone_mask_or_the_repositorys_yaml(
    source: Path, checkpoint: Path, backbone: Path
) -> None:
    folder = source.parent
    (folder / "param_req_1.pth").write_bytes(b"a mask")
    (folder / "configs" / "lora").mkdir(parents=True)
    (folder / "models_bin" / "lora").mkdir(parents=True)
    (folder / "configs" / "lora" / "y.yaml").write_text(USUAL)
    (folder / "models_bin" / "lora" / "y.bin").write_bytes(source.read_bytes())
    for given, out in (
        (checkpoint, backbone),
        (checkpoint, backbone.with_suffix(".json")),
        (checkpoint, folder / "param_req_1.pth"),
        (folder / "models_bin" / "lora" / "y.bin", folder / "configs" / "lora" / "y.yaml"),
    ):
        before = out.read_bytes()
        refused("bad-call", str(out), source=given, out=out, backbone=backbone, force=True)
        assert out.read_bytes() == before


def test_unpack_does_not_overwrite_what_it_reads(tmp_path: Path) -> None:
    adapterpack.pack(petl_adapter(), tmp_path / "x.apk")
    before = (tmp_path / "x.apk").read_bytes()
    for to in ("safetensors", "checkpoint"):
        with pytest.raises(CallError) as caught:
            adapterpack.unpack(tmp_path / "x.apk", tmp_path / "x.apk", to=to, force=True)
        assert caught.value.reason == "bad-call"
    assert (tmp_path / "x.apk").read_bytes() == before


def test_a_folder_that_is_not_there_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.apk"
    with pytest.raises(MissingFileError, match=r"none/out\.apk: no such folder"):
        adapterpack.pack(source.with_name("nothing-here.bin"), out)
    assert not out.parent.exists()


@pytest.mark.parametrize("to", ["peft", "safetensors"])
def test_unpack_makes_no_folder_above_its_output(to: str, source: Path, tmp_path: Path) -> None:
    adapterpack.pack(source, tmp_path / "x.apk", settings=SIZE)
    with pytest.raises(MissingFileError, match="no such folder"):
        adapterpack.unpack(tmp_path / "x.apk", tmp_path / "none" / "x", to=to)
    assert not (tmp_path / "none").exists()


def test_groups_of_a_fine_tuned_model(source: Path, tmp_path: Path) -> None:
    refused("bad-call", "'bitdelta:7'", "65,536", source=source, out=tmp_path / "x.apk", settings={"as": "bitdelta:7"})


def test_onnx_is_no_adapters_form(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"load FILE --backbone B --export OUT\.onnx"):
        adapterpack.unpack(tmp_path / "x.apk", tmp_path / "y", to="onnx")


def test_standard_output_is_no_place_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("bad-call", "name a file", source=petl_adapter(), out="-")
    adapterpack.pack(petl_adapter(), "x.apk")
    with pytest.raises(CallError, match="name a file"):
        adapterpack.unpack("x.apk", "-", to="safetensors")


# --- nothing is ignored without a word


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": 32}, ["group", "bits"]),
        ({"group": 32, "bits": 16}, ["group", "bits"]),
        ({"bits": True}, ["bits is True"]),
        ({"head_bits": True}, ["head_bits is True"]),
        ({"bits": 4.0}, ["bits is 4.0"]),
        ({"bits": 4, "group": False}, ["group is False"]),
        ({"profile": ["small"]}, ["profile"]),
    ],
)
def test_options(options: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    refused("bad-call", *words, source=petl_adapter(), out=tmp_path / "x.apk", **options)


def test_a_group_for_the_head_alone(tmp_path: Path) -> None:
    adapterpack.pack(petl_adapter(), tmp_path / "x.apk", head_bits=4, group=32)


def test_notes_count_what_was_kept(tmp_path: Path) -> None:
    def notes(**options: Any) -> tuple[str, ...]:
        return adapterpack.pack(petl_adapter(bits=2), tmp_path / "x.apk", force=True, **options).notes

    kept = "8 matrices were kept as they are: they have as few bits already"
    assert notes() == () and notes(bits=1) == ()
    assert notes(bits=4) == (kept,)
    assert notes(bits=4, head_bits=4) == (kept,)
    one = replace(petl_adapter(bits=2), head=None)
    summary = adapterpack.pack(one, tmp_path / "y.apk", head_bits=4)
    assert summary.notes == ("nothing was quantized: there is no matrix to quantize",)


@pytest.mark.parametrize("task", ["", "a/b", "a\\b", ".hidden", "a\nb", "\x1b[2J", "\u202e", "ü" * 128, "\ud800"])
def test_task_names(task: str, tmp_path: Path) -> None:
    refused("bad-name", "255 bytes", source=petl_adapter(), out=tmp_path / "x.apk", task=task)


def test_the_number_of_labels(source: Path) -> None:
    for given in (source, petl_adapter()):
        call = {"source": given, "out": source.with_name("x.apk"), "settings": SIZE if given is source else None}
        refused("bad-labels", "4", str(CLASSES), labels=["a"] * 4, **call)
        refused("bad-labels", labels=[], **call)
    headless = replace(petl_adapter(), head=None)
    refused("bad-labels", source=headless, out=source.with_name("x.apk"), labels=["a"])


# --- types


@pytest.mark.parametrize(
    "change",
    [
        {"source": None},
        {"source": 3},
        {"source": b"bytes"},
        {"out": None},
        {"out": b"x.apk"},
        {"task": 3},
        {"backbone": 3},
        {"metadata": [1]},
        {"metadata": "a=b"},
        {"labels": [1, 2, 3, 4, 5]},
        {"labels": "abcde"},
        {"labels": 5},
        {"settings": ["a"]},
        {"settings": {1: 2}},
        {"force": "no"},
    ],
)
def test_pack_wants_the_right_types(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        adapterpack.pack(**{"source": petl_adapter(), "out": tmp_path / "x.apk", **change})
    assert caught.value.reason == "bad-call" and next(iter(change)) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"source": None}, {"source": 3}, {"out": None}, {"to": ["petl-vit"]}, {"to": "zip"}, {"task": 3}]
)
def test_unpack_wants_the_right_types(change: dict[str, Any], tmp_path: Path) -> None:
    adapterpack.pack(petl_adapter(), tmp_path / "x.apk")
    with pytest.raises(CallError) as caught:
        adapterpack.unpack(**{"source": tmp_path / "x.apk", "out": tmp_path / "y", "to": "safetensors", **change})
    assert caught.value.reason == "bad-call"
    assert [path.name for path in tmp_path.iterdir()] == ["x.apk"]


@pytest.mark.parametrize("depth", [14, 17, 10_000])
def test_metadata_nested_too_deep(depth: int, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    call = {"source": petl_adapter(), "out": tmp_path / "x.apk", "metadata": {"a": deep}}
    refused("too-deep", kind=UnsupportedAdapterError, **call)


def test_paths_of_any_kind(source: Path) -> None:
    adapterpack.pack(str(source), str(source.with_name("x.apk")), settings=SIZE, metadata={"a": 1}, task="täsk 1")
    assert adapterpack.open(source.with_name("x.apk")).read("täsk 1").metadata["a"] == 1
    for given in ("nul\0.bin", "none.bin", "x" * 300):
        with pytest.raises(AdapterPackError):
            adapterpack.pack(given, source.with_name("y.apk"))


# --- an adapter in memory is what its types say


ROW = np.ones(16, np.float32)
SIGNS: dict[str, Any] = {"shape": (16,), "bits": 1, "levels": "unit", "group": 0,
                         "packed": np.ones(2, np.uint8), "scale": ROW[:1], "offset": None}  # fmt: skip
ODD_TENSORS: list[tuple[Any, str]] = [
    (Dense(ROW.astype(np.float64)), "x value is a Dense of float32 and holds float64"),
    (Dense(ROW, "float16"), "a Dense of float16 and holds float32"),
    (Dense(ROW.astype(np.complex64)), "complex64"),
    (Dense([1.0]), "holds list"),  # type: ignore[arg-type]
    (Dense(ROW, "int8"), "a Dense of int8"),
    (ROW, "is of type ndarray; expected Dense"),
    (Dense(ROW * np.nan), "NaN or infinity (at x value)"),
    (Quantized(**{**SIGNS, "scale": np.ones(1)}), "x value is a Quantized of arrays"),
    (Quantized(**{**SIGNS, "offset": np.ones(1, np.float16)}), "x value is a Quantized of arrays"),
    (Quantized(**{**SIGNS, "packed": b"ab"}), "x value is a Quantized of arrays"),
    (Quantized(**{**SIGNS, "shape": [16]}), "x value is a Quantized of arrays"),
    (Quantized(**{**SIGNS, "shape": 16}), "x value is a Quantized of arrays"),
    (Sparse((16,), np.array([1.0]), Dense(ROW[:1])), "x value is a Sparse of arrays"),  # type: ignore[arg-type]
    (Sparse((16,), np.array([1]), None), "x value is a Sparse of arrays"),  # type: ignore[arg-type]
    (Sparse((16,), np.array([2, 1]), Dense(ROW[:2])), "do not ascend within the tensor (at x value)"),
]


@pytest.mark.parametrize(("tensor", "told"), ODD_TENSORS)
def test_odd_tensors_in_memory_are_named(tensor: Any, told: str, tmp_path: Path) -> None:
    branch = Branch(Site("x"), "replace", {}, {"value": tensor})
    with pytest.raises(AdapterPackError) as caught:
        adapterpack.pack(replace(petl_adapter(), branches=(branch,)), tmp_path / "x.apk")
    assert told in str(caught.value) and not (tmp_path / "x.apk").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"method": 5},
        {"branches": None},
        {"branches": ["x"]},
        {"branches": [Branch("x", "replace", {}, {})]},  # type: ignore[arg-type]
        {"head": ROW},
        {"labels": ["a"] * CLASSES},
        {"labels": (1,) * CLASSES},
        {"branches": [Branch(Site("x"), "replace", None, {})]},  # type: ignore[arg-type]
        {"branches": [Branch(Site("x"), "replace", {1: 2}, {})]},  # type: ignore[dict-item]
        {"branches": [Branch(Site("x"), [], {}, {})]},  # type: ignore[arg-type]
        {"data": 224},
        {"data": DataSettings([3, 224, 224])},  # type: ignore[arg-type]
        {"data": DataSettings(mean=(0.5, "0.5", 0.5))},  # type: ignore[arg-type]
        {"data": DataSettings(crop_pct="all")},  # type: ignore[arg-type]
        {"metadata": None},
        {"backbone": "vit"},
    ],
)
def test_odd_parts_of_an_adapter_in_memory(change: dict[str, Any], tmp_path: Path) -> None:
    refused("bad-call", "is of type", source=replace(petl_adapter(), **change), out=tmp_path / "x.apk")


def test_a_head_in_memory_is_a_matrix(tmp_path: Path) -> None:
    for shape in ((), (4,), (4, 2, 2)):
        odd = replace(petl_adapter(), head=Head(Dense(np.ones(shape, np.float32))), labels=None)
        refused("bad-call", "expected [classes, features]", source=odd, out=tmp_path / "x.apk")


def test_byte_order_and_layout_of_arrays_do_not_matter(tmp_path: Path) -> None:
    values, found = (ROW * 3).reshape(4, 4), []
    for array in (values, np.asfortranarray(values), values.astype(">f4")):
        branch = Branch(Site("x"), "replace", {}, {"value": Dense(array)})
        adapterpack.pack(replace(petl_adapter(), branches=(branch,)), tmp_path / "x.apk", force=True)
        found.append((tmp_path / "x.apk").read_bytes())
    assert found[0] == found[1] == found[2]


# --- what was written


def test_unpack_tells_what_it_wrote(tmp_path: Path) -> None:
    adapterpack.pack(petl_adapter(), tmp_path / "x.apk")
    found = adapterpack.unpack(tmp_path / "x.apk", tmp_path / "out", to="petl-vit")
    assert found == (tmp_path / "out.bin", tmp_path / "out.yaml")
    assert adapterpack.unpack(tmp_path / "x.apk", str(tmp_path / "y"), to="safetensors") == (tmp_path / "y",)
    assert adapterpack.unpack(tmp_path / "x.apk", tmp_path / "z", to="checkpoint") == (tmp_path / "z",)
    assert np.all([path.is_file() for path in found])
