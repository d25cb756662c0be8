"""Models under torch.compile and captured CUDA graphs go on when tasks are swapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter

from adapterpack import AdapterPool, UnsupportedAdapterError
from tests._pool import KINDS, alone, file_of, relative, task
from tests._threads import one_thread  # noqa: F401
from tests._vit import images, same, snapshot, vit

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def folded_kinds() -> list[str]:
    return ["lora", "consolidator", "sparse", "replace"]


@pytest.mark.parametrize("head_classes", [None, 8])
def test_swapping_compiles_nothing(head_classes: int | None) -> None:
    """One compilation for each number of classes; with `head_classes`, one for all."""
    model, counter, x = vit(), CompileCounter(), images(2)
    compiled = torch.compile(model, backend=counter)
    pool = AdapterPool(compiled, head_classes=head_classes)
    names = [f"{kind}-{n}" for n, kind in enumerate(folded_kinds())] + ["lora-5", "sparse-7"]
    expected = {}
    for name in names:
        kind, n = name.split("-")
        data = file_of(task(kind, int(n), classes=4 + 2 * (int(n) % 2)))
        expected[name] = alone(data, name, vit(), x, "always")
        pool.add(data)
    counts = []
    with torch.no_grad():
        for name in names * 3:
            pool.activate(name)
            classes = expected[name].shape[1]
            assert relative(compiled(x)[:, :classes], expected[name]) < 1e-5, name
            pool(x, tasks=[name, "lora-0"])
            counts.append(counter.frame_count)
    assert counts[-1] == (2 if head_classes is None else 1) and counts[1] == counts[-1]


def test_mixed_batches_leave_compiled_models_alone() -> None:
    model, counter, x = vit(), CompileCounter(), images(len(KINDS))
    compiled = torch.compile(model, backend=counter)
    pool = AdapterPool(compiled)
    for n, kind in enumerate(KINDS):
        pool.add(file_of(task(kind, n)))
    with torch.no_grad():
        frozen = compiled(x)
        for _ in range(2):
            pool(x, tasks=[f"{kind}-{n}" for n, kind in enumerate(KINDS)])
            assert torch.equal(compiled(x), frozen)
    assert counter.frame_count == 1


@pytest.mark.parametrize("how", ["wrapped", "in place", "a block"])
def test_what_must_be_attached_is_refused(how: str) -> None:
    """A compiled block would not even fail: it would go on as if nothing were attached."""
    model = vit()
    compiled = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how != "wrapped":
        (model if how == "in place" else model.blocks[0]).compile(backend="eager")
    with torch.no_grad():
        compiled(images(1))
    before, pool = snapshot(model), AdapterPool(compiled)
    pool.add(file_of(task("adaptformer", 1)))
    with pytest.raises(UnsupportedAdapterError) as error:
        pool.activate("adaptformer-1")
    assert error.value.reason == "unsupported-model" and pool.active is None
    assert len(pool(images(1), tasks=["adaptformer-1"])[0]) == 3 and same(snapshot(model), before)


def captured(model: Any, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = model(x)
    return graph, out


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_answers_for_each_task(dtype: torch.dtype) -> None:
    model = vit().to("cuda", dtype)
    pool, x = AdapterPool(model, head_classes=8, check_fingerprint=False), images(2).to("cuda", dtype)
    for n, kind in enumerate(folded_kinds()):
        pool.add(file_of(task(kind, n)))
    pool.activate("lora-0")
    graph, out = captured(model, x)
    for n, kind in enumerate(folded_kinds()):
        pool.activate(f"{kind}-{n}")
        graph.replay()
        with torch.no_grad():
            assert torch.equal(out, model(x)), kind


@cuda
def test_mixed_batches_on_a_gpu() -> None:
    model = vit().cuda()
    before, pool = snapshot(model), AdapterPool(model)
    files = {f"{kind}-{n}": file_of(task(kind, n)) for n, kind in enumerate(KINDS)}
    for data in files.values():
        pool.add(data)
    tasks = [*files, *files]
    x = images(len(tasks))
    for name, row, one in zip(tasks, pool(x, tasks=tasks), x):
        assert row.device.type == "cuda"
        assert relative(row.cpu(), alone(files[name], name, vit(), one[None])[0]) < 1e-3, name
    assert same(snapshot(model), before)
