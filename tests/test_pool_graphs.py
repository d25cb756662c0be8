"""Mixed batches as recorded forward passes: on the CPU with recordings that are run again as a CUDA graph would."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from adapterpack import AdapterPool, CallError, UnsupportedAdapterError
from adapterpack.runtime.pool.graphs import CudaRecorder, Graphs
from tests._cuda import Cuda
from tests._pool import alone, file_of, relative, task
from tests._tape import Tape
from tests._threads import one_thread  # noqa: F401
from tests._vit import WIDTH, adapter, images, lora, same, snapshot, vit

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LORAS = [("lora", n) for n in range(5)]


def pool_of(names: list[tuple[str, int]], *sizes: int, model: nn.Module | None = None) -> tuple[AdapterPool, Tape]:
    pool, tape = AdapterPool(model or vit()), Tape()
    pool._engine.gather, pool._engine.graphs = True, Graphs(sizes, tape)
    for kind, number in names:
        pool.add(file_of(task(kind, number)))
    return pool, tape


def check(found: list[torch.Tensor], x: torch.Tensor, tasks: list[str]) -> None:
    """Against each task loaded by itself."""
    assert len(found) == len(tasks)
    for row, image, name in zip(found, x, tasks):
        kind, _, number = name.rpartition("-")
        expected = alone(file_of(task(kind, int(number))), name, vit(), image[None])[0]
        assert relative(row, expected) < 2e-6, name


def test_every_batch_is_its_own() -> None:
    """Other images, tasks and numbers of rows each time; recorded once a size."""
    pool, tape = pool_of(LORAS, 2, 8)
    before, draw = snapshot(pool.model), random.Random(1)
    for n, count in enumerate([8, 5, 1, 2, 8, 3, 1, 6]):
        tasks = [f"lora-{draw.randrange(5)}" for _ in range(count)]
        x = images(count, seed=n)
        check(pool(x, tasks=tasks), x, tasks)
    assert tape.recorded == 2 and same(snapshot(pool.model), before)


def test_answers_are_the_callers_own() -> None:
    pool, _ = pool_of(LORAS, 2)
    first = pool(images(2), tasks=["lora-0", "lora-1"])
    kept = [row.clone() for row in first]
    pool(images(2, seed=9), tasks=["lora-3", "lora-4"])
    assert all(map(torch.equal, first, kept))


@pytest.mark.parametrize(
    ("tasks", "recorded"),
    [
        (["lora-0"] * 3, 1),  # of one task
        (["lora-0", "lora-rank-2-1", "lora-2"], 0),  # of two forms
        (["lora-rank-2-1"] * 2, 1),
        (["lora-0", "adaptformer-1"], 0),
        (["adaptformer-1"] * 2, 0),
        (["replace-2"], 0),
        (["everything-3", "lora-0"], 0),
        (["lora-0"] * 5, 0),  # larger than every size
    ],
)
def test_what_is_recorded(tasks: list[str], recorded: int) -> None:
    """Everything else runs as it does without."""
    names = [("lora", 0), ("lora", 2), ("lora-rank-2", 1), ("adaptformer", 1), ("replace", 2), ("everything", 3)]
    pool, tape = pool_of(names, 4)
    for seed in range(2):
        x = images(len(tasks), seed=seed)
        check(pool(x, tasks=tasks), x, tasks)
    assert tape.recorded == recorded


def test_forms_do_not_mix() -> None:
    """In turn, and each recorded for itself: another rank, and another set of sites."""
    pool, tape = pool_of([("lora", 0), ("lora-rank-2", 1)], 2)
    some = replace(task("lora", 7), branches=task("lora", 7).branches[:2])
    pool.add(file_of(some))
    x = images(2)
    for _ in range(2):
        for name in ("lora-0", "lora-rank-2-1"):
            check(pool(x, tasks=[name] * 2), x, [name] * 2)
        assert relative(pool(x, tasks=["lora-7"] * 2)[0], alone(file_of(some), "lora-7", vit(), x[:1])[0]) < 2e-6
    assert tape.recorded == 3


def test_a_layer_behind_the_pooling() -> None:
    """It is given one vector an image, without tokens."""
    model, tape = vit(), Tape()
    model.head_drop = nn.Linear(WIDTH, WIDTH)
    made = [adapter([lora("head_drop", seed=n)], model, name=f"lora-{n}") for n in range(2)]
    pool = AdapterPool(model)
    pool._engine.gather = True
    for one in made:
        pool.add(file_of(one))
    for graphs in (None, Graphs([4], tape)):
        pool._engine.graphs = graphs
        for seed in range(2):
            x = images(3, seed=seed)
            found = pool(x, tasks=["lora-0", "lora-1", "lora-1"])
            for row, image, number in zip(found, x, [0, 1, 1]):
                assert relative(row, alone(file_of(made[number]), f"lora-{number}", model, image[None])[0]) < 2e-6
    assert tape.recorded == 1


def test_heads_alone() -> None:
    """Tasks without a branch share the recording of the frozen backbone."""
    pool, tape = AdapterPool(vit()), Tape()
    pool._engine.gather, pool._engine.graphs = True, Graphs([4], tape)
    heads = [replace(task("lora", n), branches=()) for n in range(2)]
    for made in heads:
        pool.add(file_of(made))
    for seed in range(2):
        x = images(3, seed=seed)
        found = pool(x, tasks=["lora-0", "lora-1", "lora-1"])
        for row, image, number in zip(found, x, [0, 1, 1]):
            assert relative(row, alone(file_of(heads[number]), f"lora-{number}", vit(), image[None])[0]) < 2e-6
    assert tape.recorded == 1


def test_tasks_come_and_go() -> None:
    """A recording knows no task: another one under an old name is answered for, and so is one that came later."""
    pool, tape = pool_of(LORAS[:2], 2)
    x = images(2)
    pool(x, tasks=["lora-0", "lora-1"])
    pool.add(file_of(task("lora", 4)), name="lora-0", replace=True)
    pool.add(file_of(task("lora", 3)))
    pool.remove("lora-1")
    check(pool(x, tasks=["lora-0", "lora-3"]), x, ["lora-4", "lora-3"])
    assert tape.recorded == 1


def test_beside_an_active_task() -> None:
    pool, tape = pool_of(LORAS[:3], 2)
    x = images(2)
    for name in ("lora-2", None, "lora-1"):
        pool.activate(name)
        check(pool(x, tasks=["lora-0", "lora-1"]), x, ["lora-0", "lora-1"])
    assert tape.recorded == 1 and pool.active == "lora-1"


def test_a_cast_model_is_recorded_anew() -> None:
    pool, tape = pool_of(LORAS[:2], 2)
    x, tasks = images(2), ["lora-0", "lora-1"]
    expected = pool(x, tasks=tasks)
    pool.model.double()
    pool._engine.follow()
    pool._engine.gather = True  # as on a GPU
    found = pool(x, tasks=tasks)
    assert found[0].dtype == torch.float64 and tape.recorded == 2
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, expected))


def test_a_model_that_went_to_another_device_and_back_is_recorded_anew() -> None:
    """Between two batches, so that its device and dtype are the same: a graph reads where the numbers were."""
    pool, tape = pool_of(LORAS[:2], 2)
    x, tasks = images(2), ["lora-0", "lora-1"]
    pool(x, tasks=tasks)
    pool.model.half().float()
    found = pool(x, tasks=tasks)
    pool._engine.graphs = None
    assert all(relative(a, b) < 2e-6 for a, b in zip(found, pool(x, tasks=tasks))) and tape.recorded == 2


def test_on_another_device_nothing_is_recorded() -> None:
    """Where the model was moved to one without graphs after the pool was made."""
    pool, tape = pool_of(LORAS[:2], 2)
    tape.device_type = "cuda"
    x, tasks = images(2), ["lora-0", "lora-1"]
    check(pool(x, tasks=tasks), x, tasks)
    assert tape.recorded == 0


def test_under_autocast_nothing_is_recorded() -> None:
    pool, tape = pool_of(LORAS[:2], 2)
    with torch.autocast("cpu", torch.bfloat16):
        pool(images(2), tasks=["lora-0", "lora-1"])
    assert tape.recorded == 0


def test_few_forms_are_kept() -> None:
    """Their memory is told, and the one that was not used for longest goes."""
    pool, tape = pool_of([], 1, 2, model=vit(dynamic_img_size=True))
    pool.add(file_of(task("lora", 0)))
    assert pool.stats().graph_bytes == 0
    sizes = [32, 48, 64, 80, 32, 96]  # another form of images each
    told = []
    for size in [*sizes, 32]:
        pool(images(1, size), tasks=["lora-0"])
        told.append(pool.stats().graph_bytes)
    assert tape.recorded == 5 and told == sorted(told) and told[0] > 2 * 3 * 32 * 32 * 4
    pool(images(1, 48), tasks=["lora-0"])
    assert tape.recorded == 6 and pool.stats().graph_bytes < told[-1]


def test_many_threads() -> None:
    pool, tape = pool_of(LORAS, 1, 4)
    draw = random.Random(2)
    asked = [[f"lora-{draw.randrange(5)}" for _ in range(draw.randint(1, 4))] for _ in range(24)]

    batches = [images(len(tasks), seed=n) for n, tasks in enumerate(asked)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(pool, batches, asked))
    for answers, x, tasks in zip(found, batches, asked):
        check(answers, x, tasks)
    assert tape.recorded == 2


def test_a_failed_recording_leaves_the_pool_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, tape = pool_of(LORAS[:2], 2)
    x, tasks = images(2), ["lora-0", "lora-1"]

    def fail(run: Any) -> Any:
        raise torch.OutOfMemoryError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(tape, "record", fail)
        with pytest.raises(CallError) as error:
            pool(x, tasks=tasks)
    assert error.value.reason == "out-of-memory"
    check(pool(x, tasks=tasks), x, tasks)


@pytest.mark.parametrize("sizes", [8, "1, 8", (0,), (1, 2.0), (True,), [8, -1]])
def test_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(CallError, match="cuda_graphs is") as error:
        AdapterPool(vit(), cuda_graphs=sizes)
    assert error.value.reason == "bad-call"


def test_a_model_on_the_cpu() -> None:
    with pytest.raises(CallError, match="on a GPU, this one is on cpu") as error:
        AdapterPool(vit(), cuda_graphs=(1, 8))
    assert error.value.reason == "bad-call" and "cuda" in error.value.hint
    elsewhere = vit().to("meta")
    with pytest.raises(CallError, match="this one is on cpu"):
        AdapterPool(elsewhere, device="cpu", cuda_graphs=(1, 8))  # refused before the model is moved
    assert AdapterPool(vit(), cuda_graphs=())._engine.graphs is None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def capture(recorder: CudaRecorder, device: int = 0, fail: Exception | None = None) -> Any:
    """A recording, in a turn, of a forward pass that may fail where it is captured."""
    calls = 0

    def run() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if fail is not None and calls == 2:
            raise fail
        return torch.ones(1)

    with recorder.turn(torch.device("cuda", device)):
        recorded = recorder.record(run)
    assert calls == 2
    return recorded


def test_captures_share_memory_while_one_of_them_is_alive(stand_in: Cuda) -> None:
    """As when a cast model is captured anew: the memory of graphs that are gone is not for another capture."""
    recorder = CudaRecorder()
    kept = [capture(recorder), capture(recorder)]
    assert stand_in.shared() == [2] and len({stream for _, stream in stand_in.captured}) == 1
    kept.clear()
    kept.append(capture(recorder))
    assert stand_in.shared() == [2, 1]


def test_a_capture_that_fails_leaves_nothing_behind(stand_in: Cuda) -> None:
    """Not its stream to the caller, nor memory that another capture is refused."""
    recorder, before = CudaRecorder(), [*stand_in.streams]
    kept = [capture(recorder)]
    for _ in range(2):
        with pytest.raises(UnsupportedAdapterError, match="cannot be captured"):
            capture(recorder, fail=RuntimeError("not permitted\nwhile capturing"))
        assert stand_in.streams == before
    kept.append(capture(recorder))
    assert stand_in.shared() == [1, 1]


def test_pools_capture_one_after_another(stand_in: Cuda) -> None:
    order: list[str] = []
    other = threading.Thread(target=lambda: (capture(CudaRecorder()), order.append("other")))

    before = torch.cuda.current_stream()

    def run() -> torch.Tensor:
        if other.ident is None and torch.cuda.current_stream() is not before:  # captured, and no more warming up
            other.start()
            other.join(0.3)
            order.append("first")
        return torch.ones(1)

    CudaRecorder().record(run)
    other.join()
    assert order == ["first", "other"]


def test_a_forward_pass_that_fails_by_itself_says_so(stand_in: Cuda) -> None:
    def run() -> torch.Tensor:
        raise RuntimeError("expected 3 channels")

    with pytest.raises(RuntimeError, match="expected 3 channels"):
        CudaRecorder().record(run)


def test_captures_are_in_a_stream_of_the_models_device(stand_in: Cuda) -> None:
    """And not in torch's default for captures, which is of the device that was first captured on."""
    kept = [capture(CudaRecorder(), 0), capture(CudaRecorder(), 1)]
    assert [stream.device for _, stream in stand_in.captured] == [0, 1] and stand_in.device == 0 and kept


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """Captured and not: the same products, in a batch of another size."""
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    pools = [AdapterPool(vit().to("cuda", dtype), check_fingerprint=False, cuda_graphs=s) for s in ((), (2, 8))]
    for pool in pools:
        for kind, number in LORAS:
            pool.add(file_of(task(kind, number)))
    draw = random.Random(3)
    for n, count in enumerate([8, 5, 1, 2, 8, 3]):
        tasks = [f"lora-{draw.randrange(5)}" for _ in range(count)]
        x = images(count, seed=n).cuda()
        for one, other in zip(*(pool(x, tasks=tasks) for pool in pools)):
            assert relative(one, other) < tolerance
    assert pools[1].stats().graph_bytes > 0


@cuda
def test_on_a_gpu_a_model_that_moves_is_captured_anew() -> None:
    model, x, tasks = vit().cuda(), images(2).cuda(), ["lora-0", "lora-1"]
    pool = AdapterPool(model, check_fingerprint=False, cuda_graphs=(2,))
    for kind, number in LORAS[:2]:
        pool.add(file_of(task(kind, number)))
    for move in (model.eval, lambda: model.cpu().cuda(), lambda: model.half().float(), model.bfloat16):
        move()
        graphs, found = pool._engine.graphs, pool(x, tasks=tasks)
        assert graphs is not None and pool.stats().graph_bytes > 0
        pool._engine.graphs = None
        expected, pool._engine.graphs = pool(x, tasks=tasks), graphs
        assert all(relative(a, b) < (2e-2 if a.dtype == torch.bfloat16 else 1e-5) for a, b in zip(found, expected))


class _Synchronises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) else x + 1


@cuda
def test_a_model_that_cannot_be_captured() -> None:
    model = vit().cuda()
    model.norm_pre = _Synchronises()
    pool = AdapterPool(model, check_fingerprint=False, cuda_graphs=(2,))
    pool.add(file_of(task("lora", 1)))
    before = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(UnsupportedAdapterError, match="cannot be captured") as error:
            pool(images(2).cuda(), tasks=["lora-1"] * 2)
        assert "cuda_graphs" in error.value.hint and torch.cuda.current_stream() == before


@cuda
def test_turns_wait_for_each_other() -> None:
    recorder = CudaRecorder()
    with recorder.turn(torch.device("cuda")):
        pass
    with recorder.turn(torch.device("cuda")):
        assert recorder._done is not None
