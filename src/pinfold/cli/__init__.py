"""The command line."""

from __future__ import annotations

import gc
import signal
import sys

from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def entry() -> Any:
    """The entry point: from here on an interrupt ends us as it ends any program, with no traceback of an import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["run"]:
        gc.disable()  # one run leaves no cycles worth looking for, and ends with the process
        from pinfold.cli import front

        if (found := front.parse(sys.argv[2:])) is not None:
            from pinfold.cli.status import leave, status_of

            leave(status_of(lambda: _one_run(*found), failed=125))
    from pinfold.cli.main import main

    return main()


def _one_run(argv: list[str], options: dict[str, Any]) -> int:
    from pinfold.cli.one_run import one_run  # an import that fails is an error like any other

    return one_run(argv, options)
