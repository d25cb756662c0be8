"""The small profile's bytes do not depend on BLAS kernels, threads or hash seeds: all sums are exact integers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterpack.codecs.predictive import PredictiveSigns, candidate_params
from adapterpack.quantize import quantize_latent
from tests.factories import numbers

ROOT = Path(__file__).resolve().parent.parent
_PROGRAM = """
import numpy as np
import hashlib
from adapterpack import Adapter, Branch, Head, Site
from adapterpack.packing.encode import encode_task
from adapterpack.packing.join import join
from adapterpack.quantize import quantize_latent

rng = np.random.default_rng(5)

def trained(rows, columns):  # of low rank, so that there is something to predict
    return quantize_latent((rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))).astype(np.float32).round(3), 1)

branches = tuple(
    Branch(Site(f"blocks.{i}.mlp"), "adaptformer", {"scale": 1.0}, {"down": trained(16, 192), "up": trained(192, 16)})
    for i in range(4)
)
adapter = Adapter("t", "adaptformer", branches, Head(trained(40, 192)))
encoded = encode_task(adapter, "small")
codecs = [segment.codec for segment in encoded.entry.segments]
print(codecs, hashlib.sha256(join([encoded], adapter.backbone)).hexdigest())
"""


def printed(**environment: str) -> str:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=given, check=True, capture_output=True, text=True
    ).stdout


def test_one_result_on_every_kernel_thread_count_and_hash_seed() -> None:
    expected = printed()
    assert "predictive-signs" in expected
    for kernel, threads, seed in [("Haswell", "1", "0"), ("SkylakeX", "2", "1"), ("Prescott", "2", "2")]:
        found = printed(OPENBLAS_CORETYPE=kernel, OPENBLAS_NUM_THREADS=threads, PYTHONHASHSEED=seed)
        assert found == expected, kernel


@pytest.mark.parametrize("part", ["adapter", "head"])
def test_random_signs_cost_at_most_the_packed_bits_and_a_length(part: str) -> None:
    shapes = [(32, 192), (192, 32)] * 3 if part == "adapter" else [(100, 192)]
    tensors = [quantize_latent(numbers(i, shape), 1) for i, shape in enumerate(shapes)]
    form = {name: value for name, value in tensors[0].form().items() if name != "bits"}
    for extra in candidate_params(part, shapes):
        payload = PredictiveSigns().encode(tensors, {**form, **extra, "compression": "none"})
        plain = sum(len(t.packed) for t in tensors)
        assert len(payload) - 8 * len(tensors) <= plain + 5, "mean and deviation of each, then the bits and one length"
