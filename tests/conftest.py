"""Published files for the tests: found through an environment variable or beside the checkout; absent, tests skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two test processes on two cores: torch's threads must not spin while they wait. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def _folder(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable, _SHARED / name))
    if not path.is_dir():
        pytest.skip(f"no published files at {path}; set {variable}")
    return path


@pytest.fixture(scope="session")
def petl_vit() -> Path:
    """The folder of PETL-ViT's published `.bin` files, one folder a method."""
    return _folder("ADAPTERPACK_PETL_VIT", "petl-vit")


@pytest.fixture(scope="session")
def spt_masks() -> Path:
    """The folder of SPT's published masks: `<variant>/<task>/param_req_<budget>.pth`."""
    return _folder("ADAPTERPACK_SPT", "spt")


# The same examples on every run and machine; a failure is a failure for everyone.
settings.register_profile(
    "adapterpack",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("adapterpack")


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray on this machine, for all tests that need it: two processors as it believes, no dashboard."""
    from adapterpack.serving.start import ray_running

    os.environ.update(RAY_memory_monitor_refresh_ms="0")  # no worker is killed for the memory that other programs take
    with ray_running("", 1):
        yield
