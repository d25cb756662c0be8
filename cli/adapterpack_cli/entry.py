"""Where the `adapterpack` command begins: an interruption while modules are imported is one line as well."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from adapterpack_cli.main import main as run  # here, because it imports everything else

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
