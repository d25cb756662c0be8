"""Random steps end with the backbone's own bits and no more memory than they began with."""

from __future__ import annotations

import pytest

from tests._pool_steps import Walk
from tests._threads import one_thread  # noqa: F401


@pytest.mark.parametrize("gather", [False, True])
def test_random_steps(gather: bool) -> None:
    """A few hundred here; `python -m tests._pool_steps 10000` takes longer."""
    walk = Walk(1, gather=gather)
    walk.run(200)
    walk.activate()
    before = walk.emptied()
    walk.run(200)
    after = walk.emptied()
    walk.run(200)
    last = walk.emptied()
    assert walk.exact() and walk.pool.tasks == ()
    assert before["kept"][:3] == after["kept"][:3] == (0, 0, 0) and after["evictions"] > before["evictions"] > 0
    # a station, and a copied region, for each site met first; a leak grows every time, what other tests left does not
    assert min(after["ours"] - before["ours"], last["ours"] - after["ours"]) < 150
    assert after["tensor_bytes"] - before["tensor_bytes"] <= after["kept"][3] - before["kept"][3]
