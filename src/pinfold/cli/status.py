"""How the program ends: every error as one line on stderr and an exit status."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

from pinfold import errors
from pinfold.cli.writing import LINE_BOUND, write_within
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


class Complaint(Exception):
    """What is to be said of a wrong command line; as it is, or as a line of ours."""

    def __init__(self, message: str, *, as_it_is: bool = False) -> None:
        super().__init__(message)
        self.as_it_is = as_it_is


def safe(text: str) -> str:
    """Foreign text as one harmless piece: no control or escape characters reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def complain(message: str) -> None:
    """One line of ours on stderr; stdout belongs to the command. Where it cannot be written, the status stays right."""
    _say(f"pinfold: {safe(message)}")


def _say(text: str) -> None:
    if sys.stderr is None:  # it was closed when we began
        return
    try:
        fd = sys.stderr.fileno()
    except (OSError, ValueError):  # something that stands in for it
        sys.stderr.write(f"{text}\n")
        return
    with contextlib.suppress(OSError):  # closed meanwhile; nobody reads
        sys.stderr.flush()
        write_within(fd, f"{text}\n".encode(sys.stderr.encoding or "utf-8", "backslashreplace"), LINE_BOUND)


def status_of(call: Callable[[], int], failed: int) -> int:
    """The exit status of `call`: what it returns, or what its error means; `failed` is pinfold's own failure."""
    lost: list[BaseException] = []  # what ended a thread of ours: said once, here, and not as its traceback
    threading.excepthook = lambda thread: lost.append(thread.exc_value) if thread.exc_value else None
    try:
        return call()
    except Complaint as error:
        (_say if error.as_it_is else complain)(str(error))
    except errors.UsageError as error:
        complain(str(error))
    except errors.Error as error:
        if lost:
            _own_fault(lost[0])
        else:
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        complain(str(error))
    except Exception as error:  # noqa: BLE001  # a fault of ours must not look like a status of the command
        _own_fault(error)
    return failed


def leave(status: int) -> NoReturn:
    """End the process, as sys.exit does, but without taking the interpreter apart: that takes longer than a command."""
    give_up_unwritable()
    atexit._run_exitfuncs()
    give_up_unwritable()  # what these have written
    os._exit(status & 0xFF)


def give_up_unwritable() -> None:
    """Drop what could not be written: the interpreter would try again at its exit, and make the status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, stream.fileno())
            os.close(null)


def _own_fault(error: BaseException) -> None:
    import traceback

    if os.environ.get("PINFOLD_DEBUG"):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    what = traceback.format_exception_only(error)[-1].strip()
    complain(f"internal error: {what} (please report it; PINFOLD_DEBUG=1 shows where)")
