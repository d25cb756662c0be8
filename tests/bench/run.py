"""`make bench`: every table of sizes and times, on this machine, now."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy
import torch

from tests.bench import codecs, commands, converters, loading, packing, service, serving, sizes, training

TABLES = {
    "sizes": lambda rounds: sizes.report(),
    "loading": loading.report,
    "codecs": codecs.report,
    "packing": lambda rounds: packing.report(max(3, rounds // 4)),
    "commands": commands.report,
    "http": service.report,
    "converters": lambda rounds: converters.report(),
    "serving": serving.report,
    "training": lambda rounds: training.report(max(3, rounds // 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES, action="append")
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 21")
    arguments = parser.parse_args()
    versions = f"numpy {numpy.__version__}, torch {torch.__version__}"
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}\n")
    for name in arguments.only or TABLES:
        print(TABLES[name](5 if arguments.quick else 21), flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
