"""SIGTERM, which service managers and `kill` send: it interrupts a command as Ctrl-C does, and is said."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM interrupt, also where Ray has put in its own handler meanwhile, which leaves by `SystemExit`.

    Raises:
        KeyboardInterrupt: SIGTERM came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        signal.signal(signal.SIGTERM, before)
