"""Start train.py from a process that has already imported torch and DeepSpeed, which takes longer than most runs of a test.

A server with the imports done forks a run for every request. The run has arguments, environment, folder, cores, streams and a
command line of its own, as a process that was started by itself; only its parent is the server. Code that is imported before
the fork cannot be disturbed by a test: what happens during the imports, and variables that are read then, need a cold start
(tests/processes.py). Used as a program, this file is the server: `python -m tests.warm SOCKET PADDING`.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FDS = 4  # stdin, stdout, stderr, and where the run's end is told
PADDING = 8000  # characters of a command line that a run may have
_server: list[socket.socket] = []


class WarmProcess:
    """A run that the server forked, with what tests use of subprocess.Popen."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str]) -> None:
        """Standard error goes where standard output goes, as text."""
        self.args = args
        self.returncode: int | None = None
        out, theirs = os.pipe()
        self._end, told = os.pipe()
        request = {"args": args, "cwd": str(cwd), "env": env, "cores": sorted(os.sched_getaffinity(0))}
        request["ignored"] = [int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
        server = _started()
        socket.send_fds(server, [json.dumps(request).encode()], [0, theirs, theirs, told])
        os.close(theirs)
        os.close(told)
        self.pid = int(server.recv(64))
        self.stdout = os.fdopen(out, encoding="utf-8")

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it prints until it has ended."""
        deadline, pieces = None if timeout is None else time.monotonic() + timeout, []
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(None if deadline is None else deadline - time.monotonic()):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0, b"".join(pieces))
                if not (piece := os.read(self.stdout.fileno(), 1 << 16)):
                    break
                pieces.append(piece)
        self.stdout.close()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return b"".join(pieces).decode().replace("\r\n", "\n"), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._end, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(os.read(self._end, 64) or b"1")  # nothing: the server is gone
                    os.close(self._end)
        return self.returncode


def _started() -> socket.socket:
    """The server of this test process, which ends when this process does."""
    if not _server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno()), "-" * PADDING],
            cwd=ROOT,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        _server.append(ours)
    return _server[0]


def serve(client: socket.socket) -> dict[str, Any] | None:
    """Fork a run for every request, and tell of every end; returns in a run, with its request, and at the client's end."""
    ends: dict[int, int] = {}
    wake, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        for source in (client, wake):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is wake:
                    wake.recv(64)
                    _tell_ends(ends)
                    continue
                message, fds, _, _ = socket.recv_fds(client, 1 << 20, FDS)
                if not message:
                    return None
                if not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    for fd in [*ends.values(), tell.detach(), wake.detach()]:
                        os.close(fd)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    request: dict[str, Any] = json.loads(message)
                    _become(request, fds)
                    client.send(str(os.getpid()).encode())  # now it is what it was asked to be
                    return request
                ends[pid] = fds[-1]
                for fd in fds[:-1]:
                    os.close(fd)


def _tell_ends(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        os.write(ends[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ends.pop(pid))


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Take on what the run was asked to be: streams, folder, environment, cores, signals, command line."""
    for number, fd in enumerate(fds[:-1]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.sched_setaffinity(0, request["cores"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        if number not in (signal.SIGPIPE, signal.SIGXFSZ):  # Python's own
            signal.signal(number, signal.SIG_IGN)
    _set_command_line([sys.executable, *request["args"]])
    sys.argv = request["args"]
    sys.path[0] = str(Path(request["args"][0]).parent)


def _set_command_line(words: list[str]) -> None:
    """What /proc shows, written over the server's own, which has room for it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = "".join(f"{word}\0" for word in words).encode()
    assert len(text) < end - begin, "raise PADDING"
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def main() -> None:
    client = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and the server ends with them
    import tests.preload  # noqa: F401

    request = serve(client)
    client.close()
    if request is not None:
        runpy.run_path(request["args"][0], run_name="__main__")


if __name__ == "__main__":
    main()
