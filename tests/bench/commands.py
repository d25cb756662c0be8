"""Whole commands: `adapterpack inspect` against `python -c "import numpy"`, user + system time of the child process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.bench.inputs import example
from tests.bench.sizes import packed
from tests.bench.timing import table


def report(rounds: int) -> str:
    """The command table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cifar.apk"
        path.write_bytes(packed(example("lora-bihead", 32), "small"))
        command = [sys.executable, "-m", "adapterpack_cli", "inspect", str(path)]
        cases = {
            'python -c "import numpy"': [sys.executable, "-c", "import numpy"],
            "adapterpack inspect": command,
            "adapterpack inspect --json": [*command, "--json"],
            "adapterpack verify": [*command[:3], "verify", str(path)],
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for r in range(rounds + 1):
            for name, words in cases.items():
                spent = _child(words)
                if r:
                    times[name].append(spent)
    base = times['python -c "import numpy"']
    rows = [
        [name, f"{1000 * median(found):.0f}", f"{median(t / b for t, b in zip(found, base)):.2f}"]
        for name, found in times.items()
    ]
    title = "Commands, CPU time of the whole process, one thread\n\n"
    return title + table(["command", "ms", "ratio"], rows)


def _child(words: list[str]) -> float:
    # one thread: numpy's pool costs as much CPU time as its import; the first round, uncounted, writes the bytecode
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**plain, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
