"""A folder of images through Ray Data: what is left to do, many workers, parts as they come, one table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import ray
import ray.data
from ray.exceptions import RayError

from adapterpack import _files
from adapterpack._outputs import refuse_inputs
from adapterpack.errors import CallError, CorruptFileError, MissingFileError, Reason
from adapterpack.packing.bundle import Bundle, open_bundle
from adapterpack.serving.answers import Told
from adapterpack.serving.parts import ROW, Finished, Stat, Work, write
from adapterpack.serving.pictures import images_in
from adapterpack.serving.start import gpus_of_each, quiet, ray_running
from adapterpack.serving.worker import FAILURE, NOTE, Orders, Worker

Json = dict[str, Any]
_BATCHES_A_BLOCK = 4  # what is told of, and done again where a worker dies
_PART_ROWS = 1000
_PART_SECONDS = 10.0
_MOST_NAMED = 5
Step = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What to predict.

    Attributes:
        folder: of images, with folders in it or without.
        adapter: path or URL of an `.apk` file.
        backbone: timm name, or path of a `.safetensors` file.
        out: the Parquet file to write.
        tasks: which; none for all of the file.
        top: how many classes to give.
        batch_size: images a batch.
        workers: copies of the backbone.
        cpus, gpus: what each reserves; gpus counts only where the device is a GPU.
        device: "auto", "cpu" or "cuda".
        address: of a Ray cluster; "" starts Ray here.
        skip_corrupt: leave out images that cannot be read.
        force: replace the output, and drop the parts of another run.
        check_fingerprint: False accepts any backbone of the right shape.
    """

    folder: Path
    adapter: str
    backbone: str
    out: Path
    tasks: tuple[str, ...] = ()
    top: int = 5
    batch_size: int = 32
    workers: int = 1
    cpus: float = 1
    gpus: float = 1
    device: str = "auto"
    address: str = ""
    skip_corrupt: bool = False
    force: bool = False
    check_fingerprint: bool = True


def predict(question: Question, progress: Callable[[int], AbstractContextManager[Step]]) -> Json:
    """Do it, or go on with it.

    Args:
        question: what.
        progress: makes a progress bar of so many images; what it gives is called after each of them.

    Returns:
        out, tasks, images, resumed, corrupt (paths), seconds and notes; a JSON object.

    Raises:
        MissingFileError: no such folder, or no image in it.
        CallError: `file-exists`, `unknown-task`, `io-error`; `bad-call`, an output that is an input.
        CorruptFileError: images that cannot be read, unless they shall be skipped; what was done is kept.
        AdapterPackError: the adapter or the backbone is refused.
    """
    start = time.monotonic()
    refuse_inputs(question.out, [Path(question.adapter)], question.backbone)
    _files.refuse_output(question.out, force=question.force)
    bundle = open_bundle(question.adapter)
    tasks = tuple(dict.fromkeys(question.tasks or bundle.tasks))
    images = images_in(question.folder)
    work = Work(question.out, _about(question, bundle, tasks), force=question.force)
    before = work.finished(images, len(tasks))
    kept = before.images if question.skip_corrupt else before.images - before.corrupt.keys()  # perhaps repaired
    left = [path for path in images if path not in kept]
    note = _compute(question, bundle, tasks, {path: images[path] for path in left}, work, progress) if left else ""
    finished = work.finished(images, len(tasks))
    if finished.corrupt and not question.skip_corrupt:
        raise _corrupt(finished.corrupt, len(images))
    if finished.images != images.keys():
        text = f"{len(images.keys() - finished.images)} of {len(images):,} images were not done"
        raise CallError(text, Reason.IO, hint="repeat the command; what was done is kept")
    write(question.out, _result(finished, list(images), tasks), force=question.force)
    work.remove()
    return {
        "out": str(question.out),
        "tasks": list(tasks),
        "images": len(images),
        "resumed": len(kept),
        "corrupt": sorted(finished.corrupt),
        "seconds": round(time.monotonic() - start, 3),
        "notes": [note] * bool(note),
    }


def _about(question: Question, bundle: Bundle, tasks: Sequence[str]) -> Json:
    """What makes two runs the same."""
    backbone: Json = {"name": question.backbone}
    if question.backbone.endswith(".safetensors"):
        path = Path(question.backbone)
        if not path.is_file():
            raise MissingFileError(f"there is no file {path}", Reason.MISSING_FILE, hint="give a timm name or a file")
        facts = path.stat()
        backbone = {"name": path.name, "size": facts.st_size, "mtime": facts.st_mtime_ns}
    digests = [bundle.task_digest(task) for task in tasks]
    folder = str(question.folder.resolve())
    return {"adapter": digests, "tasks": list(tasks), "top": question.top, "backbone": backbone, "images": folder}


def _compute(
    question: Question,
    bundle: Bundle,
    tasks: Sequence[str],
    images: Mapping[str, Stat],
    work: Work,
    progress: Callable[[int], AbstractContextManager[Step]],
) -> str:
    """Run the workers over the images and keep their rows as parts; what the workers have to remark."""
    source = bundle.source
    orders = Orders(
        folder=str(question.folder.absolute()),
        adapter=_files.read_exactly(source, 0, source.size(), source.name),
        backbone=_absolute(question.backbone),
        tasks=tuple(tasks),
        top=question.top,
        device=question.device,
        check_fingerprint=question.check_fingerprint,
    )
    try:
        with ray_running(question.address, question.workers * question.cpus), progress(len(images)) as step:
            return _gather(_blocks(question, orders, images), work, step)
    except RayError as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        hint = "repeat the command, what was done is kept; --debug says more"
        raise CallError(f"Ray failed: {last[0][:300]}", Reason.IO, hint=hint) from error
    finally:
        work.remove_if_empty()


def _blocks(question: Question, orders: Orders, images: Mapping[str, Stat]) -> Any:
    """Tables of the workers' rows, in no order."""
    quiet("ray.data")  # its import has set another level
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"path": path, "size": size, "mtime": mtime} for path, (size, mtime) in images.items()]
    workers, count = _shares(len(rows), question.batch_size, question.workers)
    asked = ray.data.from_items(rows, override_num_blocks=count).map_batches(
        Worker,
        fn_constructor_args=(orders,),
        batch_size=question.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=question.cpus,
        num_gpus=gpus_of_each(question.device, workers, question.cpus, question.gpus),
    )
    return asked.iter_batches(batch_size=None, batch_format="pyarrow")


def _shares(images: int, batch_size: int, workers: int) -> tuple[int, int]:
    """How many workers have something to do, and the blocks that the images go into: one for each at least."""
    batches = -(-images // batch_size)
    busy = min(workers, batches)
    return busy, max(busy, -(-batches // _BATCHES_A_BLOCK))


def _gather(blocks: Any, work: Work, step: Step) -> str:
    """Write parts as rows come; also what is there when the run is interrupted."""
    rows: list[pa.Table] = []
    note, last = "", time.monotonic()
    try:
        for block in blocks:
            note = _checked(block) or note
            rows.append(block.select(ROW.names).cast(ROW))
            step(len(set(block["path"].to_pylist())))
            if sum(map(len, rows)) >= _PART_ROWS or time.monotonic() - last > _PART_SECONDS:
                work.add(rows)
                rows, last = [], time.monotonic()
    finally:
        work.add(rows)
    return note


def _checked(block: pa.Table) -> str:
    """What a worker remarks.

    Raises:
        AdapterPackError: it cannot work, and why.
    """
    for failure in block[FAILURE].to_pylist():
        if failure is not None:
            raise Told(*failure).error()
    return next((note for note in block[NOTE].to_pylist() if note), "")


def _corrupt(corrupt: Mapping[str, str], images: int) -> CorruptFileError:
    named = [f"{path} ({why})" for path, why in sorted(corrupt.items())[:_MOST_NAMED]]
    more = f" and {len(corrupt) - _MOST_NAMED} more" if len(corrupt) > _MOST_NAMED else ""
    text = f"{len(corrupt)} of {images:,} images cannot be read: {', '.join(named)}{more}"
    hint = "repair or remove them, or repeat with --skip-corrupt; what was done is kept"
    return CorruptFileError(text, Reason.BAD_SOURCE, hint=hint)


def _result(finished: Finished, images: Sequence[str], tasks: Sequence[str]) -> pa.Table:
    """The table that is written: ordered by path, then by task as they were asked for."""
    at = {path: number for number, path in enumerate(images)}
    place = {task: number for number, task in enumerate(tasks)}
    paths, names = finished.table["path"].to_pylist(), finished.table["task"].to_pylist()
    good = [i for i, name in enumerate(names) if name is not None and paths[i] not in finished.corrupt]
    good.sort(key=lambda i: (at[paths[i]], place[names[i]]))
    table = finished.table.take(pa.array(good, pa.int64()))
    labels, probabilities = (pc.list_element(table[name], 0) for name in ("labels", "probabilities"))
    columns = {"path": table["path"], "task": table["task"], "label": labels, "probability": probabilities}
    return pa.table({**columns, "labels": table["labels"], "probabilities": table["probabilities"]})


def _absolute(backbone: str) -> str:
    return str(Path(backbone).absolute()) if backbone.endswith(".safetensors") else backbone
