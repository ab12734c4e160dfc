"""Processes that end when we do, and the time limit and signals that make us end."""

import ctypes
import os
import signal
import sys
import time
from contextlib import contextmanager

from .common import Interrupted, TimeLimit

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_LIBC = ctypes.CDLL(None, use_errno=True)


def _prctl(option, value):
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def die_with_parent(parent):
    """For ``preexec_fn``: the kernel kills the new process when ``parent``, its maker, is gone."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans():
    """From now on the orphans of our children become our children, so that they can be ended."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _children():
    """Process ids of our children, living or not yet waited for."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listed:
        return [int(word) for word in listed.read().split()]


def end_children():
    """Kills our children and, as they become ours, theirs, until none is left."""
    while True:
        children = _children()
        if not children:
            return
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for child in children:
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                pass


@contextmanager
def bounded(seconds):
    """In here the time limit raises TimeLimit and a signal that asks for our end raises Interrupted.

    Both arrive wherever the code happens to be, in a blocked write to a reader that stopped reading too.
    """
    def expired(_number, _frame):
        raise TimeLimit

    def asked(number, _frame):
        # Only the first one: the end itself must not be cut short.
        for each in ending:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for each in ending:
        signal.signal(each, asked)
    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Report:
    """Progress with times, on stderr, when asked for."""

    def __init__(self, verbose):
        self._verbose = verbose
        self._start = time.monotonic()
        self._last = self._start

    def step(self, text):
        """Says what has just been done and how long it took."""
        now = time.monotonic()
        if self._verbose:
            print(f"kvm-host: {now - self._start:6.2f} s (+{now - self._last:.2f}) {text}", file=sys.stderr, flush=True)
        self._last = now
