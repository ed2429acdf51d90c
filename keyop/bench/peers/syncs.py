"""How often a contender asks the disk to keep what it has written, counted by strace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

_CALLS = "fsync,fdatasync,sync_file_range,msync,sync,syncfs"
_ATTACH_S = 10.0
_LOOK_S = 0.01


class SyncCounter:
    """Counts the calls of some processes, all their threads included, from attaching to ``end``.

    Attributes:
        why_not: why nothing can be counted, or "".
    """

    def __init__(self, pids: Sequence[int], directory: str) -> None:
        self.why_not = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._summary = os.path.join(directory, "strace.summary")
        if shutil.which("strace") is None:
            self.why_not = "syncs not counted: strace is not installed"
            return
        command = ["strace", "-f", "-c", "-e", f"trace={_CALLS}", "-o", self._summary]
        for pid in pids:
            command += ["-p", str(pid)]
        log = os.path.join(directory, "strace.log")
        with open(log, "wb") as said:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)
        deadline = time.monotonic() + _ATTACH_S
        while not _attached(log, pids):
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.end()
                self.why_not = "syncs not counted: strace may not attach to the processes"
                return
            time.sleep(_LOOK_S)

    def end(self) -> int | None:
        """Detach; return the number of calls, or None if nothing could be counted."""
        if self._child is None:
            return None
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)  # which makes it write its summary
        self._child.wait()
        self._child = None
        return _calls(self._summary)


def _attached(log: str, pids: Sequence[int]) -> bool:
    with open(log, encoding="utf-8", errors="replace") as file:
        said = file.read()
    return all(f"Process {pid} attached" in said for pid in pids)


def _calls(path: str) -> int | None:
    """Return the sum of the column of calls: the fourth, of each line but heads and the total."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return None
    names = _CALLS.split(",")
    return sum(int(words[3]) for words in lines if words and words[-1] in names)
