"""`make bench`: every table of sizes and times, on this machine, now."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy
import torch

from tests.bench import codecs, commands, converters, gpu, loading, packing, service, serving, sizes, training

TABLES = {
    "sizes": lambda rounds: sizes.report(),
    "loading": loading.report,
    "codecs": codecs.report,
    "packing": lambda rounds: packing.report(max(3, rounds // 4)),
    "commands": commands.report,
    "http": service.report,
    "converters": lambda rounds: converters.report(),
    "serving": serving.report,
    "first-use": serving.first_use_report,
    "gpu": gpu.report,
    "training": lambda rounds: training.report(max(3, rounds // 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES, action="append")
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 21")
    parser.add_argument("--out", type=Path, help="write a page as well, such as docs/benchmarks.md")
    arguments = parser.parse_args()
    names, rounds = arguments.only or list(TABLES), 5 if arguments.quick else 21
    parts = [machine()]
    for name in names:
        print(parts[-1], end="\n\n", flush=True)
        parts.append(TABLES[name](rounds) if len(names) == 1 else _in_a_child(name, rounds))
    print(parts[-1], flush=True)
    if arguments.out:
        command = " ".join(["python tests/bench/run.py", *sys.argv[1:]])
        head = f"# Benchmarks\n\nWritten by `{command}` on one machine; `make bench` prints them for yours.\n\n"
        arguments.out.write_text(head + "\n\n".join(parts) + "\n", "utf-8")


def _in_a_child(name: str, rounds: int) -> str:
    """A table from a process of its own: what ran before leaves memory in pieces and caches cold, which shows."""
    code = f"from tests.bench import run; print(run.TABLES[{name!r}]({rounds}))"
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-c", code]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root)
    return done.stdout.strip()


def machine() -> str:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cpu = model[0] if model else platform.processor() or platform.machine()
    cores = f"{os.cpu_count()} cores, {name}"
    versions = f"Python {platform.python_version()}, numpy {numpy.__version__}, torch {torch.__version__}"
    return f"{cpu}, {cores}; {versions}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
