"""Signals and the terminal, for the time of one run.

On a terminal the command shares our session and process group, as under env(1) or nice(1): so it is in the foreground
group when we are, Ctrl-C and Ctrl-Z reach it from the kernel, and full-screen programs work; only what was sent to us
alone is passed on (group_signals.py). Elsewhere it has a session of its own, and everything is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from pinfold.cli.group_signals import Witness
from pinfold.runs.loop import READABLE, Loop
from pinfold.runs.states import Event
from pinfold.runs.supervise import Supervision
from pinfold.spawn._spawn import signalfd
from pinfold.typed import TYPE_CHECKING
from pinfold.units import INFINITY

if TYPE_CHECKING:
    from typing import Final


_FORWARDED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP")
_SI_KERNEL: Final = 0x80  # sigaction(2): sent by the kernel, here by the terminal
_ONE_REQUEST: Final = 0.1  # timeout(1) signals its child and then its group: the same request twice
_GROUP_FOLLOWS: Final = 0.02  # after how long the second of these has come
_FREEZE_BOUND: Final = 0.02
_FREEZE_LOOK: Final = 0.001


def on_terminal() -> bool:
    """Whether the command should share our session: stdin is a terminal, and it is our controlling one."""
    try:
        os.tcgetpgrp(0)  # ENOTTY for any terminal but our controlling one
    except OSError:
        return False
    return True


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """Leave the caller's descriptors and terminal as they were: a command may change flags and modes they share."""
    flags = {}
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            flags[fd] = os.get_blocking(fd)
    modes = group = None
    if on_terminal():
        import termios

        with contextlib.suppress(OSError, termios.error):
            modes, group = termios.tcgetattr(0), os.tcgetpgrp(0)
    try:
        yield
    finally:
        for fd, blocking in flags.items():
            with contextlib.suppress(OSError):
                if os.get_blocking(fd) != blocking:
                    os.set_blocking(fd, blocking)
        if modes is not None and group == os.getpgrp():
            import termios

            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            with contextlib.suppress(OSError, termios.error):
                if os.tcgetpgrp(0) != group:
                    os.tcsetpgrp(0, group)
                if termios.tcgetattr(0) != modes:
                    termios.tcsetattr(0, termios.TCSADRAIN, modes)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Signals:
    """Takes our signals synchronously while a run goes on.

    INT, TERM and HUP ask for its end: the command gets the signal, and the grace to obey; then everything is killed. A
    second one kills at once. What the keys of a terminal send is between the user and the command (it may be a shell,
    or ask whether one is sure), but for the hangup.
    """

    scheduled = INFINITY  # for the loop

    def __init__(self, *, shared_group: bool, grace: float) -> None:
        """Hold them back from now on, so that none is lost while the command is being started."""
        self._grace, self._kill_at = grace, INFINITY
        wanted = [getattr(signal, name) for name in _FORWARDED]
        if shared_group:
            wanted.remove(signal.SIGTSTP)  # the group stops as a whole, we with it
        # What was ignored when we came (nohup, background jobs of scripts) stays ignored: by us, and by the command.
        self.ignored = [n for n in wanted if signal.getsignal(n) is signal.SIG_IGN]
        self._held = {*wanted, signal.SIGCHLD} - {*self.ignored}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._held)
        self._fd = signalfd(sorted(self._held))
        self._shared_group = shared_group
        self._witness = Witness() if shared_group else None
        self._last: tuple[int, int, float] = (0, 0, 0.0)
        self.ended_by: int | None = None  # the signal by which its end was asked for

    def attend(self, run: Supervision, loop: Loop, on_child: Callable[[], None]) -> None:
        """Have the loop pass signals on to a run that has just been started; `on_child`: a child of ours may be over.

        What came before the command was in our group has reached nobody but us; what came between then and its exec
        has killed it, for nothing else can happen to it there. So all that is pending now can be passed on.
        """
        self._run, self._loop, self._on_child = run, loop, on_child
        self._early = signal.sigpending()
        loop.add(self._fd, READABLE, self._take_all, run)

    def _take_all(self) -> None:
        while (info := signal.sigtimedwait(self._held, 0)) is not None:
            self._take_one(info)

    def _take_one(self, info: signal.struct_siginfo) -> None:
        if info.si_signo == signal.SIGCHLD:
            self._on_child()
        elif info.si_signo == signal.SIGTSTP:
            self._stop()
        else:
            # The witness is asked in any case: what it has seen must not be taken for the next one.
            reached = self._reached_the_group(info) and info.si_signo not in self._early
            self._early.discard(signal.Signals(info.si_signo))
            if self._is_new(info):
                self._pass_on(info, reached=reached)

    # ---- as a party to the loop: the end of the grace --------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When the grace is over."""
        return self._kill_at

    def expire(self, _now: float) -> None:
        """It is over."""
        self._kill()
        self._loop.schedule(self._run)

    def fail(self, error: BaseException) -> None:
        """In a loop of one run, errors are raised."""
        raise error

    def _kill(self) -> None:
        self._kill_at = INFINITY
        self._run.take(Event.ABORTED)

    def dismiss_witness(self) -> None:
        """The run is over. Before anybody looks for children of ours. Idempotent."""
        if self._witness is not None:
            self._witness.end()
            self._witness = None

    def close(self) -> None:
        """What came too late is dropped; what comes now ends us, should our lines find no reader."""
        self.dismiss_witness()
        os.close(self._fd)
        while signal.sigtimedwait(self._held, 0):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._held)

    def _reached_the_group(self, info: signal.struct_siginfo) -> bool:
        if self._witness is None:
            return False
        seen = self._witness.saw(info.si_signo)
        if seen is None:
            return info.si_code == _SI_KERNEL
        if not seen:
            # The one for the group may be still on its way to the witness; or to come, and then to us too, once more.
            signal.sigtimedwait({info.si_signo}, _GROUP_FOLLOWS)
            seen = self._witness.saw(info.si_signo) is True
        return seen

    def _is_new(self, info: signal.struct_siginfo) -> bool:
        number, sender, at = self._last
        self._last = (info.si_signo, info.si_pid, time.monotonic())
        return (number, sender) != self._last[:2] or self._last[2] - at > _ONE_REQUEST

    def _pass_on(self, info: signal.struct_siginfo, *, reached: bool) -> None:
        number = info.si_signo
        key = reached and info.si_code == _SI_KERNEL
        if number == signal.SIGHUP or (number in (signal.SIGINT, signal.SIGTERM) and not key):
            again, self.ended_by = self.ended_by is not None, number
            if again:
                self._kill()
                return
            self._kill_at = time.monotonic() + self._grace
            self._loop.schedule(self)
        if self._shared_group:
            if not reached:
                self._run.signal_main(number)
        else:
            self._run.signal_group(number)  # as timeout(1) does, and as a terminal would

    def _stop(self) -> None:
        """Ctrl-Z where the command is not in our group: stop its tree, then ourselves; and on, when we go on."""
        until = time.monotonic() + _FREEZE_BOUND
        self._run.freeze()
        while not self._run.is_frozen() and time.monotonic() < until:
            time.sleep(_FREEZE_LOOK)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._run.thaw()
