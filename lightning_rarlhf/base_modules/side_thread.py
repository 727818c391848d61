"""A thread that makes calls for another one: in order, one at a time, under that one's settings of torch."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

ResultT = TypeVar("ResultT")


class SideThread(Generic[ResultT]):
    """Calls are waiting in a queue; nothing runs before `start`, nothing after `end`.

    A daemon: a process that is told to exit at once does not wait for a call that hangs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Take over gradient mode, inference mode and autocast of the calling thread; torch has them by thread.

        Args:
            name: of the thread, for debuggers.
            device: that the calls work on; on CUDA, with its index, they get a stream other than the caller's, in which
                their kernels would wait for all that the caller has asked for.
        """
        context, settings = contextvars.copy_context(), _settings_here(device)
        self._calls: SimpleQueue[tuple[Future[ResultT], Callable[[], ResultT]] | None] = SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=context.run, args=(self._run, settings), name=name, daemon=True)

    def start(self) -> None:
        """Wait for calls from now on."""
        self._thread.start()

    def do(self, call: Callable[[], ResultT]) -> Future[ResultT]:
        """Have `call` made when those before it are done."""
        result: Future[ResultT] = Future()
        self._calls.put((result, call))
        return result

    def end(self, timeout: float | None = None) -> bool:
        """Make no further call; wait for the one under way, at most `timeout` seconds (None = as long as it takes).

        Returns:
            whether the thread has ended; it does so after the call under way.
        """
        self._ended = True
        self._calls.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, settings: Callable[[], AbstractContextManager[None]]) -> None:
        with settings():
            while (waiting := self._calls.get()) is not None and not self._ended:
                _settle(*waiting)
                del waiting  # what the call holds is not needed while the next one is waited for


def _settle(result: Future[ResultT], call: Callable[[], ResultT]) -> None:
    try:
        result.set_result(call())
    except BaseException as error:  # whatever it is, it belongs to who asks for the result
        result.set_exception(error)


def _settings_here(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What gives another thread this one's settings; autocast stays entered, for leaving it empties a cache of all."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in {"cpu", device.type}]
    caches = torch.is_autocast_cache_enabled()
    stream = _side_stream(device) if device.type == "cuda" else None

    @contextmanager
    def same() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype, enabled in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=caches))
            stack.enter_context(torch.cuda.stream(stream))  # None: does nothing
            yield

    return same


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all threads on `device`: memory that was freed in a stream is used again in that stream only."""
    return torch.cuda.Stream(device)
