"""Worker processes: many calls of one function, each apart from the others, with events while they run.

Unlike `concurrent.futures`, a killed worker costs its own call and no other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

Key = TypeVar("Key")


@dataclass(frozen=True)
class Event(Generic[Key]):
    """An event of a call: "progress" (a value that the function sent), "done" (its result) or "failed" (the reason)."""

    key: Key
    kind: str
    value: Any
    details: str = ""  # of a failure: the traceback


@dataclass
class _Worker(Generic[Key]):
    process: Any
    connection: Connection
    key: Key


def cores() -> int:
    """Count the processor cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    function: Callable[..., Any], calls: Mapping[Key, tuple[Any, ...]], workers: int, *, fresh: bool = False
) -> Generator[Event[Key], None, None]:
    """Make every call `function(*arguments, send)` in worker processes of one torch thread each.

    Yields events as they come: "progress" for each `send(value)` inside the function, then one "done" or "failed"
    per call. Function and arguments must be picklable. Ending the iteration ends the workers.
    fresh: a new process for every call, so that no call meets the remains of another.
    """
    waiting = list(calls.items())
    running: list[_Worker[Key]] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(function, *waiting.pop(0)))
            for connection in wait([worker.connection for worker in running]):
                worker = next(worker for worker in running if worker.connection is connection)
                event = _receive(worker)
                goes_on = not fresh and worker.process.is_alive()
                if event.kind != "progress" and not (goes_on and _give(worker, waiting)):
                    running.remove(worker)
                    _stop(worker)
                yield event
    finally:
        for worker in running:
            _stop(worker)


def _start(function: Callable[..., Any], key: Key, arguments: tuple[Any, ...]) -> _Worker[Key]:
    context = multiprocessing.get_context("spawn")  # forking a process with torch's threads may hang
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(function, there), daemon=True)
    process.start()
    there.close()
    here.send(arguments)
    return _Worker(process, here, key)


def _give(worker: _Worker[Key], waiting: list[tuple[Key, tuple[Any, ...]]]) -> bool:
    """Hand a worker its next call; False when none is left."""
    if not waiting:
        return False
    worker.key, arguments = waiting.pop(0)
    worker.connection.send(arguments)
    return True


def _receive(worker: _Worker[Key]) -> Event[Key]:
    try:
        kind, value, details = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        reason = f"its process ended with exit code {worker.process.exitcode} (killed, or out of memory?)"
        return Event(worker.key, "failed", reason)
    return Event(worker.key, kind, value, details)


def _stop(worker: _Worker[Any]) -> None:
    worker.process.terminate()
    worker.process.join()
    worker.connection.close()


def _serve(function: Callable[..., Any], connection: Connection) -> None:
    """Answer calls until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            arguments = connection.recv()
            try:
                answer = ("done", function(*arguments, lambda value: connection.send(("progress", value, ""))), "")
            except Exception as error:
                answer = ("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
            connection.send(answer)
