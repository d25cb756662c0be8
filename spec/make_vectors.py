"""Make the test vectors: `python spec/make_vectors.py`, run by hand when a codec, a method or a rule is added.

A vector that exists is never rewritten; the script adds what is missing and says where it would now build other bytes.
Every vector is read by the package before it is written, and must give what it promises.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from vectors_bad import bad  # noqa: E402
from vectors_build import Vector  # noqa: E402
from vectors_cross import good_cross  # noqa: E402
from vectors_cross_bad import bad_cross  # noqa: E402
from vectors_good import good  # noqa: E402
from vectors_methods import bad_methods, good_methods  # noqa: E402
from vectors_signs import good_signs  # noqa: E402
from vectors_signs_bad import bad_signs  # noqa: E402
from vectors_top import bad_top, good_top  # noqa: E402

from adapterpack.adapter import Adapter  # noqa: E402
from adapterpack.errors import AdapterPackError  # noqa: E402
from adapterpack.packing.bundle import Bundle, open_bundle  # noqa: E402
from adapterpack.packing.cross import cross_coded  # noqa: E402
from adapterpack.packing.encode import encode_task  # noqa: E402
from adapterpack.packing.join import join  # noqa: E402

FOLDER = HERE / "vectors"
BYTES = 4096
LARGE = 1 << 20  # tensors above this many elements have no digest of their float32 values


def main() -> None:
    index = FOLDER / "index.json"
    known = {row["file"]: row for row in json.loads(index.read_text("utf-8"))} if index.exists() else {}
    good_ones = (*good(), *good_signs(), *good_cross(), *good_top(), *good_methods())
    for vector in (*good_ones, *bad(), *bad_signs(), *bad_cross(), *bad_top(), *bad_methods()):
        if vector.file in known:
            if hashlib.sha256(vector.data).hexdigest() != known[vector.file]["sha256"]:
                print(f"kept as released, although other bytes would be built now: {vector.file}")
            continue
        known[vector.file] = _describe(vector)
        path = FOLDER / vector.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(vector.data)
        print(f"added {vector.file}")
    rows = [known[name] for name in sorted(known)]
    index.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _describe(vector: Vector) -> dict[str, Any]:
    """The row of index.json, checked against the package."""
    if len(vector.data) > BYTES:
        sys.exit(f"{vector.file} has {len(vector.data)} bytes")
    common = {"file": vector.file, "sha256": hashlib.sha256(vector.data).hexdigest(), "why": vector.why}
    common |= {"source": vector.source} if vector.source else {}
    try:
        bundle = open_bundle(vector.data)
        adapters = [bundle.read(task) for task in bundle.tasks]
    except AdapterPackError as error:
        if error.reason != vector.reason:
            sys.exit(f"{vector.file}: {error.reason} instead of {vector.reason}: {error}")
        common |= {"where": error.where} if error.where else {}
        return {**common, "result": "error", "reason": error.reason}
    if vector.reason is not None:
        sys.exit(f"{vector.file} is read, although it should give {vector.reason}")
    tasks = [_task(bundle, one) for one in adapters]
    return {
        **common,
        "result": "ok",
        "writer": _writer(vector, bundle, adapters),
        "digest": bundle.digest,
        "tasks": tasks,
    }


def _task(bundle: Bundle, adapter: Adapter) -> dict[str, Any]:
    tensors = [(str(b.site), role, tensor) for b in adapter.branches for role, tensor in b.tensors.items()]
    head = adapter.head.tensors if adapter.head else {}
    tensors += [("head", role, head[role]) for role in sorted(head)]
    rows = [
        [site, role, hashlib.sha256(tensor.dense().astype("<f4").tobytes()).hexdigest()]
        for site, role, tensor in tensors
        if _elements(tensor.shape) <= LARGE
    ]
    return {"name": adapter.name, "digest": bundle.task_digest(adapter.name), "tensors": rows}


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _writer(vector: Vector, bundle: Bundle, adapters: list[Adapter]) -> str | None:
    """The profile with which the package writes these very bytes, or "cross-task"; None where it writes others."""
    for profile in ("small", "fast"):
        if join([encode_task(one, profile) for one in adapters], bundle.backbone) == vector.data:
            return profile
    small = join([encode_task(one, "small") for one in adapters], bundle.backbone)
    return "cross-task" if cross_coded(small) == vector.data else None


if __name__ == "__main__":
    main()
