"""Adding, removing, activating, asking: what a pool promises of one task at a time, and of everything it refuses."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace as replaced
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import adapterpack
from adapterpack import AdapterPool, CallError, CorruptFileError, UnsupportedAdapterError
from adapterpack.adapter import Backbone, DataSettings, Head
from adapterpack.errors import AdapterPackError, MissingFileError
from adapterpack.packing.cross import cross_coded
from adapterpack.runtime.images import read_image, top_classes
from adapterpack.runtime.load import MissingFingerprintWarning, load_adapter
from adapterpack.runtime.pool.cache import Cache
from tests._pool import KINDS, alone, file_of, relative, task
from tests._threads import one_thread  # noqa: F401
from tests._vit import SIZE, WIDTH, adapter, dense, images, lora_qv, one_bit, same, snapshot, vit


@pytest.fixture
def model() -> Any:
    return vit()


@pytest.fixture
def pool(model: Any) -> AdapterPool:
    return AdapterPool(model)


@pytest.mark.parametrize("form", ["path", "text", "bytes", "file", "url"])
def test_a_file_from_anywhere(pool: AdapterPool, model: Any, tmp_path: Path, form: str) -> None:
    data = file_of(task("lora", 1), task("adaptformer", 2))
    path = tmp_path / "all.apk"
    path.write_bytes(data)
    if form == "url":
        import fsspec

        fsspec.filesystem("memory").pipe_file("/pool/all.apk", data)
    sources: dict[str, Any] = {
        "path": path, "text": str(path), "bytes": data, "file": io.BytesIO(data), "url": "memory://pool/all.apk",
    }  # fmt: skip
    assert pool.add(sources[form]) == pool.tasks == ("lora-1", "adaptformer-2")
    assert len(pool) == 2 and "lora-1" in pool and "lora-2" not in pool
    path.unlink()  # nothing is read again
    rows = pool(images(2), tasks=["lora-1", "adaptformer-2"])
    assert [len(row) for row in rows] == [3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_active_is_loaded(pool: AdapterPool, model: Any, kind: str) -> None:
    data = file_of(task(kind, 1))
    before, x = snapshot(model), images(3)
    expected = alone(data, f"{kind}-1", model, x, "auto")
    pool.add(data)
    pool.activate(f"{kind}-1")
    assert pool.active == f"{kind}-1"
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    pool.activate(None)
    assert pool.active is None and same(snapshot(model), before)


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_swapping_in_any_order_is_exact(model: Any, fold: Any) -> None:
    before, x = snapshot(model), images(2)
    pool = AdapterPool(model, fold=fold)
    files = {f"{kind}-{n}": file_of(task(kind, n)) for n, kind in enumerate(KINDS)}
    expected = {name: alone(data, name, model, x, fold) for name, data in files.items()}
    for data in files.values():
        pool.add(data)
    for at in np.random.default_rng(0).integers(0, len(files), 60):
        name = list(files)[at]
        pool.activate(name)
        with torch.no_grad():
            assert torch.equal(model(x), expected[name]), name
    pool.remove(str(pool.active))
    assert pool.active is None and same(snapshot(model), before)


def test_folding_keeps_addresses_and_one_copy(pool: AdapterPool, model: Any) -> None:
    addresses = {name: value.data_ptr() for name, value in model.named_parameters() if not name.startswith("head")}
    for n in range(6):
        pool.add(file_of(task("lora", n)))
        pool.activate(f"lora-{n}")
        heads = sum(4 * (n % 5 + 2) * (WIDTH + 1) for n in range(min(n + 1, 5)))
        assert pool.stats().pristine_bytes == 3 * 2 * WIDTH * WIDTH * 4 + heads
    now = {name: value.data_ptr() for name, value in model.named_parameters() if not name.startswith("head")}
    assert now == addresses


def test_a_head_of_the_backbones_own_form_goes_into_it(pool: AdapterPool, model: Any) -> None:
    data = file_of(task("lora", 0, classes=7))
    before, address, expected = snapshot(model), model.head.weight.data_ptr(), alone(data, "lora-0", model, images())
    pool.add(data)
    pool.activate("lora-0")
    assert model.head.weight.data_ptr() == address
    assert relative(model(images()).detach(), expected) < 1e-5
    pool.activate(None)
    assert same(snapshot(model), before)


def test_one_head_for_all(model: Any) -> None:
    pool, x = AdapterPool(model, head_classes=8), images(2)
    seen = set()
    for n in range(3):
        data = file_of(task("lora", n))
        expected = alone(data, f"lora-{n}", vit(), x, "auto")
        pool.add(data)
        pool.activate(f"lora-{n}")
        seen.add((model.head.weight.data_ptr(), model.head.bias.data_ptr()))
        with torch.no_grad():
            found = model(x)
        assert found.shape == (2, 8) and relative(found[:, : n + 2], expected) < 1e-6
        assert found.softmax(1)[:, n + 2 :].eq(0).all()
    assert len(seen) == 1
    with pytest.raises(CallError, match="9 classes") as error:
        pool.add(file_of(task("lora", 9, classes=9)))
        pool.activate("lora-9")
    assert error.value.reason == "bad-call" and pool.active == "lora-2"


def test_using_gives_back_what_was_active(pool: AdapterPool, model: Any) -> None:
    for n in range(2):
        pool.add(file_of(task("lora", n)))
    before = snapshot(model)
    with pool.using("lora-0") as inside:
        assert inside is model and pool.active == "lora-0"
        with pool.using("lora-1"):
            assert pool.active == "lora-1"
            pool(images(1), tasks=["lora-0"])
            assert pool.active == "lora-1"
        assert pool.active == "lora-0"
        pool.remove("lora-0")
    assert pool.active is None and same(snapshot(model), before)


def test_names(pool: AdapterPool, model: Any) -> None:
    data = file_of(task("lora", 0))
    assert pool.add(data, name="other") == ("other",)
    assert pool.info("other").packed_name == "lora-0" and "lora-0" not in pool
    with pytest.raises(CallError, match="'other' already") as error:
        pool.add(data, name="other")
    assert error.value.reason == "duplicate-name"
    for name in ("", ".x", "a/b", "a\\b", "a\nb", "x" * 256, 5, b"x", ["x"]):
        with pytest.raises(CallError) as error:
            pool.add(data, name=name)  # type: ignore[arg-type]
        assert error.value.reason == "bad-call"
    with pytest.raises(CallError, match="2 tasks"):
        pool.add(file_of(task("lora", 1), task("lora", 2)), name="both")
    assert pool.tasks == ("other",)


@pytest.mark.parametrize("call", ["activate", "remove", "info", "call", "predict"])
def test_unknown_tasks(pool: AdapterPool, model: Any, call: str) -> None:
    pool.add(file_of(task("lora", 1)))
    picture = Image.new("RGB", (SIZE, SIZE))
    calls: dict[str, Any] = {
        "activate": lambda: pool.activate("lora-2"),
        "remove": lambda: pool.remove("lora-2"),
        "info": lambda: pool.info("lora-2"),
        "call": lambda: pool(images(2), tasks=["lora-1", "lora-2"]),
        "predict": lambda: pool.predict([picture], tasks=["lora-2"]),
    }
    with pytest.raises(CallError, match="no task 'lora-2'; nearest: lora-1") as error:
        calls[call]()
    assert error.value.reason == "unknown-task"


def test_replacing(pool: AdapterPool, model: Any) -> None:
    x, old, new = images(2), file_of(task("lora", 1)), file_of(task("adaptformer", 2))
    pool.add(old, name="t")
    pool(x, tasks=["t", "t"])
    pool.activate("t")
    assert pool.add(new, name="t", replace=True) == ("t",)
    assert pool.active == "t" and len(pool) == 1
    with torch.no_grad():
        assert torch.equal(model(x), alone_of(new, model, x, pool))
    assert [len(row) for row in pool(x, tasks=["t", "t"])] == [4, 4]


def alone_of(data: bytes, model: Any, x: torch.Tensor, pool: AdapterPool) -> torch.Tensor:
    with pool.using(None):
        (name,) = adapterpack.open(data).tasks
        return alone(data, name, model, x, "auto")


def broken_files(model: Any) -> dict[str, tuple[bytes, str]]:
    """Bad files and the reasons for which they are refused."""
    good = file_of(task("lora", 5), task("adaptformer", 6))
    flipped = bytearray(good)
    flipped[-5] ^= 1
    wide = adapter(lora_qv(), model, name="wide")
    wide = adapter(lora_qv(), model, name="wide", head=Head(one_bit(4, WIDTH + 1)), backbone=wide.backbone)
    elsewhere = adapter(lora_qv(), None, name="elsewhere", backbone=Backbone("small", "sha256:" + "0" * 64))
    deep = adapter(lora_qv(depth=4), model, name="deep")
    return {
        "empty": (b"", "truncated"),
        "cut": (good[:-1], "truncated"),
        "longer": (good + b"x", "trailing-bytes"),
        "flipped": (bytes(flipped), "checksum-mismatch"),
        "other": (b"PK\x03\x04" + bytes(60), "other-format"),
        "head": (file_of(wide), "site-shape"),
        "fingerprint": (file_of(elsewhere), "fingerprint-mismatch"),
        "site": (file_of(task("lora", 7), deep), "missing-site"),
    }


@pytest.mark.parametrize("name", ["empty", "cut", "longer", "flipped", "other", "head", "fingerprint", "site"])
def test_a_failed_add_leaves_everything_as_it_was(pool: AdapterPool, model: Any, name: str) -> None:
    data, reason = broken_files(model)[name]
    pool.add(file_of(task("lora", 0)))
    pool.activate("lora-0")
    before, stats = snapshot(model), pool.stats()
    for replace in (False, True):
        with pytest.raises(AdapterPackError) as error:
            pool.add(data, replace=replace)
        assert error.value.reason == reason
        assert pool.stats() == stats and same(snapshot(model), before)


def test_a_duplicate_in_a_bundle_adds_none_of_it(pool: AdapterPool, model: Any) -> None:
    pool.add(file_of(task("lora", 1)))
    with pytest.raises(CallError, match="'lora-1' already"):
        pool.add(file_of(task("lora", 0), task("lora", 1)))
    assert pool.tasks == ("lora-1",)


def test_missing_files_are_named(pool: AdapterPool, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing"):
        pool.add(tmp_path / "nothing.apk")
    (tmp_path / "bad.apk").write_bytes(b"\x00" * 100)
    with pytest.raises(CorruptFileError, match=r"bad\.apk"):
        pool.add(tmp_path / "bad.apk")


def test_an_add_that_swaps_and_fails_leaves_the_old_task(
    pool: AdapterPool, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterpack.runtime.pool import active as pool_active

    pool.add(file_of(task("lora", 0)), name="t")
    pool.activate("t")
    before, stats = snapshot(model), pool.stats()
    calls = 0

    def failing(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError

    monkeypatch.setattr(pool_active, "apply_step", failing)
    with pytest.raises(CallError) as error:
        pool.add(file_of(task("everything", 1)), name="t", replace=True)
    assert error.value.reason == "out-of-memory" and calls == 2
    assert same(snapshot(model), before) and pool.info("t").digest and pool.stats().tasks == stats.tasks
    pool.activate(None)


def test_a_fingerprint_is_compared_while_a_task_is_folded(pool: AdapterPool, model: Any) -> None:
    with pytest.warns(MissingFingerprintWarning, match="lora-1 does not say"):
        pool.add(file_of(task("lora", 1, backbone=Backbone("small"))))
    pool.activate("lora-1")
    before = snapshot(model)
    data = file_of(task("lora", 2))
    pool.add(data)
    assert pool.tasks == ("lora-1", "lora-2") and same(snapshot(model), before)


def test_the_check_can_be_left_out(model: Any) -> None:
    pool = AdapterPool(model, check_fingerprint=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.add(broken_files(model)["fingerprint"][0])
        pool.add(file_of(task("lora", 1, backbone=Backbone("small"))))
    assert len(pool) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"fold": "sometimes"},
        {"memory_budget": -1},
        {"memory_budget": 1.5},
        {"head_classes": 0},
        {"device": "cud"},
        {"device": "cuda:99"},
        {"device": "meta"},
    ],
)
def test_bad_arguments(model: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(CallError) as error:
        AdapterPool(model, **arguments)
    assert error.value.reason == "bad-call"


def test_other_models_are_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match="Linear"):
        AdapterPool(torch.nn.Linear(2, 2))


def test_a_task_of_somebody_else(pool: AdapterPool, model: Any) -> None:
    pool.add(file_of(task("lora", 0)))
    with load_adapter(task("adaptformer", 1), model):
        for call in (
            lambda: pool.activate("lora-0"),
            lambda: pool(images(1), tasks=["lora-0"]),
            lambda: AdapterPool(model),
        ):
            with pytest.raises(UnsupportedAdapterError) as error:
                call()
            assert error.value.reason == "already-loaded"
    pool.activate("lora-0")
    with pytest.raises(UnsupportedAdapterError, match="lora-0 in it already"):
        load_adapter(task("adaptformer", 1), model)


@pytest.mark.parametrize(
    ("batch", "tasks"),
    [
        (torch.zeros(2, 3, SIZE, SIZE), ["t"]),
        (torch.zeros(2, 3, SIZE, SIZE), "tt"),
        (torch.zeros(2, 3, SIZE, SIZE), ["t", 1]),
        (torch.zeros(3, SIZE, SIZE), ["t"] * 3),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), ["t"]),
        (np.zeros((1, 3, SIZE, SIZE), np.float32), ["t"]),
        (torch.zeros(1, 3, SIZE, SIZE + 1), ["t"]),
    ],
)
def test_bad_batches(pool: AdapterPool, model: Any, batch: Any, tasks: Any) -> None:
    pool.add(file_of(task("lora", 0)), name="t")
    with pytest.raises(AdapterPackError) as error:
        pool(batch, tasks=tasks)
    assert error.value.reason in ("bad-call", "site-shape")


def test_what_is_of_the_wrong_type(pool: AdapterPool) -> None:
    pool.add(file_of(task("lora", 0)), name="t")
    wrong: Any = pool
    picture, x = Image.new("RGB", (SIZE, SIZE)), images(1)
    for call in (
        lambda: wrong(x, tasks=None),
        lambda: wrong(x, tasks=5),
        lambda: wrong.predict([picture], None),
        lambda: wrong.predict(picture, ["t"]),
        lambda: wrong.predict("picture.png", ["t"]),
        lambda: wrong.predict(None, ["t"]),
        lambda: wrong.predict([np.zeros((SIZE, SIZE, 3), np.uint8)], ["t"]),
        lambda: wrong.predict([None], ["t"]),
        lambda: wrong.predict([picture], ["t"], top="3"),
        lambda: wrong.predict([picture], ["t"], top=2.5),
        lambda: wrong.activate(["t"]),
        lambda: wrong.remove({}),
    ):
        with pytest.raises(CallError) as error:
            call()
        assert error.value.hint
    assert len(wrong.predict(iter([picture]), iter(["t"]), top=np.int64(1))[0].labels) == 1
    assert len(wrong(x, tasks=iter(["t"]))) == 1


def test_what_is_used_in_inference_mode_serves_outside_of_it_as_well(pool: AdapterPool, model: Any) -> None:
    """Also where gradients are asked for."""
    names = [f"{kind}-1" for kind in ("lora", "adaptformer", "everything")]
    files = {name: file_of(task(name.rpartition("-")[0], 1)) for name in names}
    expected = {name: alone(data, name, model, images(2), "auto") for name, data in files.items()}
    with torch.inference_mode():
        for name, data in files.items():
            pool.add(data)
            pool.activate(name)
            pool(images(2), tasks=[name] * 2)
    for name in names:
        pool.activate(name)
        assert torch.equal(model(images(2).requires_grad_()), expected[name])
        assert len(pool(images(2), tasks=[name] * 2)) == 2


def test_an_empty_batch(pool: AdapterPool) -> None:
    assert pool(torch.zeros(0, 3, SIZE, SIZE), tasks=[]) == []
    assert pool.predict([], tasks=[]) == []


def test_predictions_are_those_of_each_task_alone(pool: AdapterPool, model: Any, tmp_path: Path) -> None:
    """Each task with its own preprocessing, and the backbone's where a task records none."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    settings = {
        "a": DataSettings((3, SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.9, "center"),
        "b": DataSettings((3, SIZE, SIZE)),
        "c": None,
    }
    names = {"a": tuple(f"class {i}" for i in range(6)), "b": None, "c": None}
    for n, (name, data) in enumerate(settings.items()):
        made = task("lora", n, name=name, classes=6, data=data, labels=names[name])
        pool.add(file_of(made))
    found = pool.predict([picture, tmp_path / "picture.png", str(tmp_path / "picture.png")], ["a", "b", "a"], top=3)
    assert [p.task for p in found] == ["a", "b", "a"]
    for prediction in found:
        name = prediction.task
        with pool.using(name):
            image = read_image(tmp_path / "picture.png", settings[name] or DataSettings())
            expected = top_classes(model, image, 3, names[name])
        assert list(prediction.indices) == [best.index for best in expected]
        assert prediction.labels == tuple(best.label or str(best.index) for best in expected)
        assert prediction.probabilities == pytest.approx([best.probability for best in expected], rel=1e-5)
    assert found[0].to_json()["task"] == "a" and json.dumps(found[0].to_json())
    (default,) = pool.predict([picture], ["c"], top=99)
    assert len(default.labels) == 6 and sum(default.probabilities) == pytest.approx(1)


def test_pictures_that_cannot_be_used(pool: AdapterPool, model: Any, tmp_path: Path) -> None:
    pool.add(file_of(task("lora", 0, name="t", data=DataSettings((3, SIZE, SIZE)))))
    pool.add(file_of(task("lora", 0, name="large", data=DataSettings((3, 64, 64)))))
    (tmp_path / "no.png").write_bytes(b"no picture")
    picture = Image.new("RGB", (8, 8))
    for image, name, reason in (
        (tmp_path / "none.png", "t", "missing-file"),
        (tmp_path / "no.png", "t", "bad-source"),
        (picture, "large", "site-shape"),
    ):
        with pytest.raises(AdapterPackError) as error:
            pool.predict([image], [name])
        assert error.value.reason == reason
    for arguments in (([picture], []), ([picture], "t"), ([picture], ["t"], 0)):
        with pytest.raises(CallError):
            pool.predict(*arguments)


def test_stats_and_info(pool: AdapterPool, model: Any) -> None:
    data = file_of(task("lora", 1, labels=("x", "y", "z")), task("adaptformer", 2, classes=0))
    pool.add(data)
    stats, info = pool.stats(), pool.info("lora-1")
    assert [(t.name, t.method, t.classes, t.inflated_bytes, t.active) for t in stats.tasks] == [
        ("lora-1", "test", 3, 0, False),
        ("adaptformer-2", "test", None, 0, False),
    ]
    apk = adapterpack.open(data)
    assert info.labels == ("x", "y", "z") and info.bits == 1 and info.classes == 3 and info.backbone == "small"
    assert info.digest == apk.task_digest("lora-1") and pool.info("adaptformer-2").labels is None
    pool.activate("lora-1")
    assert pool.info("lora-1") == info
    now = pool.stats()
    weights = 4 * sum(t.entries for b in apk.read("lora-1").branches for t in b.tensors.values())
    assert now.active == "lora-1" and now.tasks[0].active
    assert now.tasks[0].inflated_bytes == now.active_bytes == weights + 4 * 3 * (WIDTH + 1)
    assert json.loads(json.dumps(now.to_json()))["tasks"][0]["name"] == "lora-1"
    assert json.loads(json.dumps(info.to_json()))["labels"] == ["x", "y", "z"]


def test_a_bundle_coded_across_tasks(pool: AdapterPool, model: Any) -> None:
    """Tasks that share signs are kept as they are stored, together."""
    data = file_of(*(task("lora", 3, name=f"t{n}") for n in range(3)), profile="small")
    shared = cross_coded(data)
    assert len(shared) < len(data)
    pool.add(shared)
    assert len(shared) <= pool.stats().packed_bytes <= len(shared) + 3
    pool.remove("t0")
    for n in (1, 2):
        assert relative(pool(images(1), tasks=[f"t{n}"])[0], alone(data, f"t{n}", model, images(1))[0]) < 1e-6
        assert pool.info(f"t{n}").digest == adapterpack.open(data).task_digest(f"t{n}")


def test_a_model_that_is_moved_and_cast(pool: AdapterPool, model: Any) -> None:
    data = file_of(task("everything", 1))
    pool.add(data)
    x = images(2)
    pool.activate("everything-1")
    model.double()
    pool.add(file_of(task("lora", 2)))  # compared with what the backbone was when the first one was added
    pool.activate(None)
    assert all(torch.equal(v, w.double()) for v, w in zip(model.state_dict().values(), vit().state_dict().values()))
    found = pool(x, tasks=["everything-1"] * 2)
    assert found[0].dtype == torch.float64
    assert relative(torch.stack(found), alone(data, "everything-1", vit(), x)) < 1e-5
    model.float()
    pool.activate("everything-1")
    with torch.no_grad():
        assert torch.equal(model(x), alone(data, "everything-1", vit(), x, "auto"))


def test_the_active_task_is_replaced_after_a_cast(pool: AdapterPool, model: Any) -> None:
    x, new = images(2).double(), file_of(task("lora", 2))
    pool.add(file_of(task("lora", 1)), name="t")
    pool.activate("t")
    model.double()
    pool.add(new, name="t", replace=True)
    with torch.no_grad():
        assert relative(model(x), alone(new, "lora-2", vit().double(), x, "auto")) < 1e-12
    pool.activate(None)
    assert all(torch.equal(v, w.double()) for v, w in zip(model.state_dict().values(), vit().state_dict().values()))


def test_a_model_that_went_to_another_device_and_back(pool: AdapterPool, model: Any) -> None:
    """Between two calls: all is as it was, but elsewhere in memory."""
    before = [value.clone() for value in model.state_dict().values()]
    pool.add(file_of(task("lora", 1), task("lora", 2)))
    pool.activate("lora-1")
    for value in model.parameters():
        value.data = value.data.clone()
    pool.activate("lora-2")
    pool.activate(None)
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_after_a_cast_the_active_task_is_made_anew(pool: AdapterPool, model: Any) -> None:
    """What was made for where the model was before is not used again."""
    pool.add(file_of(task("lora", 1)), name="t")
    pool.activate("t")
    before = pool._engine.front.chosen
    model.double()
    pool.activate("t")
    assert pool._engine.front.chosen is not before


def test_branches_without_a_head_use_the_backbones(pool: AdapterPool, model: Any) -> None:
    data = file_of(task("lora", 1, classes=0), task("adaptformer", 2))
    pool.add(data)
    found = pool(images(2), tasks=["lora-1", "adaptformer-2"])
    assert [len(row) for row in found] == [7, 4]
    assert relative(found[0], alone(data, "lora-1", model, images(2))[0]) < 1e-6


def test_features_are_not_called_probabilities() -> None:
    """Where neither the task nor the backbone has a head, `pool(…)` gives features and `predict` nothing."""
    from adapterpack.runtime.pool.folded import predict_folded

    pool = AdapterPool(vit(num_classes=0))
    pool.add(file_of(task("lora", 1, classes=0), task("lora", 2)))
    picture = Image.new("RGB", (SIZE, SIZE))
    assert len(pool(images(1), tasks=["lora-1"])[0]) == WIDTH
    for call in (
        lambda: pool.predict([picture] * 2, ["lora-2", "lora-1"]),
        lambda: predict_folded(pool, [picture], "lora-1", DataSettings((3, SIZE, SIZE)), 5),
    ):
        with pytest.raises(UnsupportedAdapterError, match="lora-1 has no head, nor has the backbone"):
            call()
    assert len(pool.predict([picture], ["lora-2"])[0].labels) == 4
    assert len(predict_folded(pool, [picture], "lora-2", DataSettings((3, SIZE, SIZE)), 9)[0].labels) == 4


def test_a_task_without_a_head_never_answers_with_another_ones(model: Any) -> None:
    """Also while a task is active that is only attached, and whose head has the form of the backbone's own."""
    beside = replaced(task("adaptformer", 1), name="beside", labels=None)
    assert beside.head is not None
    own = Head(dense(model.num_classes, WIDTH), dense(model.num_classes))
    headless = replaced(task("lora", 2), name="headless", head=None, labels=None)
    pool = AdapterPool(model)
    pool.add(file_of(replaced(beside, head=own), headless))
    before = pool(images(2), tasks=["headless"] * 2)
    pool.activate("beside")
    for one, other in zip(pool(images(2), tasks=["headless"] * 2), before):
        assert torch.equal(one, other)


def test_what_is_removed_while_it_is_inflated_does_not_stay() -> None:
    cache = Cache(None, alive=lambda _: False)
    made: Any = SimpleNamespace(nbytes=8, labels=None)
    waiting: Any = object()
    assert cache.get(waiting, SimpleNamespace, lambda _: made) is made
    assert cache.sizes() == {}


@pytest.mark.parametrize(
    "data",
    [
        DataSettings((1, SIZE, SIZE), (0.5,), (0.5,), "bicubic", 1.0, "squash"),
        DataSettings((3, 9000, 9000), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash"),
        DataSettings((3, SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, "bicubic", 1e-6, "squash"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused_before_it_is_done(pool: AdapterPool, data: DataSettings) -> None:
    pool.add(file_of(replaced(task("lora", 1), data=data)))
    with pytest.raises(UnsupportedAdapterError):
        pool.predict([Image.new("RGB", (8, 8))], ["lora-1"])
