from __future__ import annotations

import contextvars
import threading
from contextlib import contextmanager, nullcontext

import pytest
import torch

from lightning_rarlhf.base_modules import side_thread
from lightning_rarlhf.base_modules.side_thread import SideThread

CPU = torch.device("cpu")
PATIENCE = 20.0
"""seconds, for what takes none"""


@contextmanager
def running():
    thread = SideThread("side", CPU)
    thread.start()
    try:
        yield thread
    finally:
        thread.end(PATIENCE)


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "side"]


def test_calls_are_made_in_order_in_one_other_thread_that_then_ends():
    made = []
    with running() as thread:
        results = [thread.do(lambda n=n: made.append((n, threading.get_ident())) or n * n) for n in range(5)]
        assert [result.result(PATIENCE) for result in results] == [0, 1, 4, 9, 16]
        assert alive()
    assert [number for number, _ in made] == list(range(5))
    assert len({thread for _, thread in made} - {threading.get_ident()}) == 1
    assert not alive()


def test_an_error_of_any_kind_goes_to_who_asks_and_the_next_call_is_made():
    def leave():
        raise SystemExit(7)

    with running() as thread:
        failed, fine = thread.do(leave), thread.do(lambda: 1)
        with pytest.raises(SystemExit, match="7"):
            failed.result(PATIENCE)
        assert fine.result(PATIENCE) == 1


def test_after_the_end_no_waiting_call_is_made():
    begun, go_on, made = threading.Event(), threading.Event(), []
    thread = SideThread("side", CPU)
    thread.start()
    thread.do(lambda: begun.set() or go_on.wait(PATIENCE))
    waiting = thread.do(lambda: made.append(1))
    begun.wait(PATIENCE)
    assert not thread.end(0.01)  # does not wait for a call that hangs
    assert alive()
    go_on.set()
    assert thread.end(PATIENCE)
    assert not alive()
    assert not made
    assert not waiting.done()


def test_all_threads_of_a_device_share_one_stream(monkeypatch):
    """Else each would keep its own freed memory, which no other one uses."""
    used = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device, object()))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: used.append(stream) or nullcontext())
    side_thread._side_stream.cache_clear()
    try:
        for index in (0, 0, 1):
            thread = SideThread("side", torch.device("cuda", index))
            thread.start()
            assert thread.end(PATIENCE)
    finally:
        side_thread._side_stream.cache_clear()
    first, second, other = used
    assert first is second
    assert [stream[1].index for stream in (first, other)] == [0, 1]


def settings() -> dict[str, object]:
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast to": torch.get_autocast_dtype("cpu"),
        "cache": torch.is_autocast_cache_enabled(),
        "product": product.dtype,
        "default": torch.get_default_dtype(),
        "context": WHERE.get(),
    }


WHERE: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


@contextmanager
def in_context():
    token = WHERE.set("here")
    yield
    WHERE.reset(token)


@pytest.mark.parametrize(
    "under",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        lambda: torch.autocast("cpu", torch.float16),
        in_context,
    ],
    ids=["no_grad", "enable_grad", "inference", "bf16", "fp16", "context"],
)
def test_the_thread_has_the_settings_of_the_one_that_made_it(under):
    with under():
        here = settings()
        thread = SideThread("side", CPU)
    thread.start()
    there = thread.do(settings).result(PATIENCE)
    thread.end(PATIENCE)
    assert there == here


def test_the_thread_computes_on_as_many_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with running() as thread:
            assert thread.do(torch.get_num_threads).result(PATIENCE) == before + 1
    finally:
        torch.set_num_threads(before)
