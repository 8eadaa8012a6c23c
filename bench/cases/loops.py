"""asyncio as fast as it is: with the pidfd watcher."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def pidfd_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that waits for children by pidfd: from 3.12 that is the default, before it has to be asked for."""
    loop = asyncio.new_event_loop()
    if sys.version_info < (3, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.set_event_loop(loop)  # and with it the watcher's
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
