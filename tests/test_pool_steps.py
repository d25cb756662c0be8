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
    rounds = [(before, after), (after, last)]  # a leak grows in each; a station, and a copied region, once for a site
    assert min(late["objects"] - early["objects"] for early, late in rounds) < 300
    assert min(late["ours"] - early["ours"] for early, late in rounds) < 20
    assert after["tensor_bytes"] - before["tensor_bytes"] <= after["kept"][3] - before["kept"][3]
