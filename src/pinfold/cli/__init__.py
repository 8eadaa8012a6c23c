"""The command line."""

from __future__ import annotations

import signal
from typing import Any


def entry() -> Any:
    """The entry point: from here on an interrupt ends us as it ends any program, with no traceback of an import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pinfold.cli.main import main

    return main()
