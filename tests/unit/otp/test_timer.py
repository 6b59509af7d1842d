from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from progressor.otp import Actor, Timer
from tests.eventually import eventually
from tests.unit.otp.conftest import Start
from tests.unit.otp.probe import TIMEOUT, CrashError, Gate

HOUR = 3600.0


@pytest.fixture
def timer() -> Iterator[Timer]:
    timer = Timer()
    yield timer
    timer.close()


@pytest.fixture
def fired() -> queue.SimpleQueue[object]:
    return queue.SimpleQueue()


@pytest.fixture
def held(timer: Timer, gate: Gate) -> Gate:
    """The timer's thread hangs in this gate, so that a test can add in peace."""
    timer.after(0, gate.pass_through)
    gate.wait_until_reached()
    return gate


class Forwarding(Actor):
    def __init__(self, to: queue.SimpleQueue[object]) -> None:
        super().__init__()
        self.to = to

    def handle(self, message: object) -> object:
        self.to.put(message)
        return None


def test_the_earlier_goes_first(timer: Timer, held: Gate, fired: queue.SimpleQueue[object]) -> None:
    for delay in (-1, -3, -2):
        timer.after(delay, lambda delay=delay: fired.put(delay))  # type: ignore[misc]
    held.open()
    assert [fired.get(timeout=TIMEOUT) for _ in range(3)] == [-3, -2, -1]


def test_equal_instants_go_in_the_order_of_adding(
    timer: Timer, held: Gate, fired: queue.SimpleQueue[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("progressor.otp.timer.monotonic", lambda: now)
    for number in range(10):
        timer.after(0, lambda number=number: fired.put(number))  # type: ignore[misc]
    held.open()
    assert [fired.get(timeout=TIMEOUT) for _ in range(10)] == list(range(10))


def test_nothing_is_done_early(timer: Timer, fired: queue.SimpleQueue[object]) -> None:
    due = time.monotonic() + 0.05
    timer.after(0.05, lambda: fired.put(time.monotonic()))
    at = fired.get(timeout=TIMEOUT)
    assert isinstance(at, float)
    assert at >= due


def test_an_earlier_one_wakes_the_thread(timer: Timer, fired: queue.SimpleQueue[object]) -> None:
    timer.after(HOUR, lambda: fired.put("late"))
    timer.after(0.01, lambda: fired.put("soon"))
    assert fired.get(timeout=TIMEOUT) == "soon"
    assert len(timer) == 1


def test_a_later_one_does_not_wake_the_thread(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    timer.after(HOUR, lambda: None)
    woken: list[bool] = []
    monkeypatch.setattr(timer._changed, "notify", lambda: woken.append(True))
    timer.after(HOUR + 1, lambda: None)
    assert woken == []
    timer.after(HOUR - 1, lambda: None)
    assert woken == [True]
    monkeypatch.undo()


def test_send_after_casts(timer: Timer, start: Start, fired: queue.SimpleQueue[object]) -> None:
    timer.send_after(0.001, start(lambda: Forwarding(fired)), "hello")
    assert fired.get(timeout=TIMEOUT) == "hello"


def test_the_cancelled_is_not_done(timer: Timer, held: Gate, fired: queue.SimpleQueue[object]) -> None:
    handle = timer.after(0, lambda: fired.put("cancelled"))
    timer.after(0, lambda: fired.put("done"))
    assert handle.cancel()
    assert not handle.cancel()
    assert len(timer) == 1
    held.open()
    assert fired.get(timeout=TIMEOUT) == "done"
    eventually(lambda: timer._cancelled == 0)
    assert fired.empty()


def test_the_done_cannot_be_cancelled(timer: Timer, fired: queue.SimpleQueue[object]) -> None:
    handle = timer.after(0, lambda: fired.put("done"))
    fired.get(timeout=TIMEOUT)
    assert not handle.cancel()
    assert len(timer) == 0


def test_the_heap_is_compacted_when_more_than_half_is_cancelled(timer: Timer) -> None:
    handles = [timer.after(HOUR, lambda: None) for _ in range(100)]
    for handle in handles[:50]:
        handle.cancel()
    assert (len(timer._heap), len(timer)) == (100, 50)
    handles[50].cancel()
    assert (len(timer._heap), len(timer)) == (49, 49)
    assert [entry[2] for entry in sorted(timer._heap)] == handles[51:]


def test_after_and_cancel_over_and_over_does_not_grow_the_heap(timer: Timer) -> None:
    timer.after(HOUR, lambda: None)
    for _ in range(10_000):
        timer.after(HOUR, lambda: None).cancel()
    assert len(timer._heap) <= 64
    assert len(timer) == 1


def test_a_callback_that_raises_is_logged_and_the_rest_goes_on(
    timer: Timer, held: Gate, fired: queue.SimpleQueue[object], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise CrashError

    timer.after(-2, fail)
    timer.after(-1, lambda: fired.put("next"))
    held.open()
    assert fired.get(timeout=TIMEOUT) == "next"
    assert caplog.messages == ["a timer's callback failed"]


def test_a_callback_may_add_and_cancel(timer: Timer, fired: queue.SimpleQueue[object]) -> None:
    handle = timer.after(HOUR, lambda: fired.put("never"))
    timer.after(0, lambda: (handle.cancel(), timer.after(0, lambda: fired.put("again"))))
    assert fired.get(timeout=TIMEOUT) == "again"
    assert len(timer) == 0


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_every_casts_until_cancelled(
    timer: Timer, start: Start, fired: queue.SimpleQueue[object], jitter: float
) -> None:
    handle = timer.every(0.001, start(lambda: Forwarding(fired)), "tick", jitter)
    assert [fired.get(timeout=TIMEOUT) for _ in range(5)] == ["tick"] * 5
    assert handle.cancel()
    assert len(timer) == 0


def test_every_ends_with_its_receiver(timer: Timer, start: Start, fired: queue.SimpleQueue[object]) -> None:
    ref = start(lambda: Forwarding(fired))
    timer.every(0.001, ref, "tick")
    fired.get(timeout=TIMEOUT)
    ref.stop(TIMEOUT)
    eventually(lambda: len(timer) == 0)


def test_an_infinite_delay_is_possible(timer: Timer, fired: queue.SimpleQueue[object]) -> None:
    timer.after(float("inf"), lambda: fired.put("never"))
    timer.after(0, lambda: fired.put("now"))
    assert fired.get(timeout=TIMEOUT) == "now"


def test_a_closed_timer_does_nothing_and_takes_nothing(fired: queue.SimpleQueue[object]) -> None:
    timer = Timer("mine")
    assert "mine" in {thread.name for thread in threading.enumerate()}
    handle = timer.after(HOUR, lambda: fired.put("never"))
    timer.close()
    timer.close()
    with pytest.raises(RuntimeError, match="closed"):
        timer.after(0, lambda: None)
    assert handle.cancel()
    assert fired.empty()


def test_a_callback_may_close_the_timer() -> None:
    timer = Timer()
    timer.after(0, timer.close)
    eventually(lambda: not timer._thread.is_alive())
