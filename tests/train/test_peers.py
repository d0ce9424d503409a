from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from train import meeting
from train import peers as module
from train.meeting import Joining, meet
from train.peers import Peers
from train.stop import Stopped


class Memory:
    """A store of this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key].encode() for key in keys]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def three(store: Memory, **more: Any) -> list[Peers]:
    made = [Peers(store, rank, 3, 20.0, **more) for rank in range(3)]
    for peer in made:
        peer.beat()
    return made


def test_a_silent_rank_is_named_with_its_step(clock: list[float]) -> None:
    a, b, c = three(Memory())
    a.look()
    for second in range(1, 31):
        clock[0] = float(second)
        b.step = c.step = second
        b.beat()
        if second <= 5:
            c.beat()
        a.look()
    (lost,) = a.missing(20.0)
    assert lost.startswith("rank 2 (host ")
    assert "silent for 25 s, since step 5" in lost
    assert a.missing(26.0) == []


def test_a_failure_is_told_at_once_and_an_end_is_none(clock: list[float]) -> None:
    a, b, c = three(Memory())
    b.step = 7
    b.beat("failed: no such shard")
    c.beat("done")
    a.look()
    clock[0] = 100.0
    (lost,) = a.missing(20.0)
    assert "rank 1" in lost
    assert "at step 7: failed: no such shard" in lost


def test_who_hangs_while_all_are_alive(clock: list[float]) -> None:
    a, b, c = three(Memory())
    a.step, b.step, c.step = 12, 11, 12
    b.beat()
    c.beat()
    a.look()
    assert a.behind() == "all ranks are alive; rank 1 hangs at step 11, others are at 12"
    a.step = 11
    c.step = 11
    c.beat()
    a.look()
    assert a.behind() == "all ranks are alive, at step 11"


def test_explain_finds_the_dead_by_waiting(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = three(Memory())

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        b.beat()

    monkeypatch.setattr(time, "sleep", sleep)
    text = a.explain()
    assert text.startswith("rank 2 (")
    assert "rank 1" not in text


def test_the_store_itself_may_be_gone(clock: list[float]) -> None:
    class Gone(Memory):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            raise RuntimeError("Broken pipe\ntrace")

    assert "the store of the run does not answer (Broken pipe)" in Peers(Gone(), 0, 2, 20.0).explain()


class CutOff(Memory):
    """A store behind a network that broke without closing anything: calls do not return."""

    def __init__(self) -> None:
        super().__init__()
        self.broken, self.mended = False, threading.Event()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if self.broken:
            self.mended.wait()
        return super().multi_get(keys)

    def check(self, keys: list[str]) -> bool:
        if self.broken:
            self.mended.wait()
        return super().check(keys)


def wait_for(left: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_process_cut_off_from_the_store_ends_although_its_calls_do_not_return(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    store, left = CutOff(), list[int]()
    Peers(store, 1, 2, 0.1).beat("done")  # nobody whose silence could be noticed
    with Peers(store, 0, 2, 0.1, leave=left.append):  # leaving does not wait for the store either
        assert not left
        store.broken = True
        wait_for(left)
    store.mended.set()
    assert left == [1]
    assert "[rank 0] error: the store of the run has not answered for " in capsys.readouterr().err


def test_a_store_that_answers_is_not_given_up_between_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short `lost_after_s` is: it is the others' silence."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(module, "_LOOK_EVERY", 8)

    class Counting(Memory):
        asked = 0

        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.asked += 1
            return super().multi_get(keys)

    store, left = Counting(), list[int]()
    Peers(store, 1, 2, 0.02).beat("done")
    with Peers(store, 0, 2, 0.02, leave=left.append):
        while store.asked < 4 and not left:
            time.sleep(0.01)
    assert left == []


def test_ranks_whose_store_is_closed_while_they_meet_end_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Closed(Memory):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer\ntrace")

    left = list[int]()
    with Joining(Closed(), 0, 2, 0.01, leave=left.append):
        wait_for(left)
    assert left == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert "(--join-timeout-s): the store of the run does not answer (Connection reset by peer): " in line


def test_ranks_cut_off_while_they_meet_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "ANSWER_S", 0.05)
    store, left = CutOff(), list[int]()
    store.broken = True
    with Joining(store, 0, 2, 0.01, leave=left.append):
        wait_for(left)
    store.mended.set()
    assert left == [1]
    assert "(--join-timeout-s): the store of the run does not answer" in capsys.readouterr().err


def test_ranks_that_were_stopped_together_do_not_miss_each_other(clock: list[float]) -> None:
    a, b, _ = three(Memory())
    a.look()
    clock[0] = 3600.0  # Ctrl-Z and fg, or `scontrol suspend` and resume: a looks before the others have run
    a.look()
    assert a.missing(20.0) == []
    for second in range(3601, 3621):
        clock[0] = float(second)
        b.beat()
        a.look()
    (lost,) = a.missing(20.0)
    assert lost.startswith("rank 2 (")


def test_a_process_that_waits_for_a_lost_rank_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    # The store answers; its watch has a test of its own.
    monkeypatch.setattr(Peers, "_watch_store", lambda self: None)
    store, left = Memory(), list[int]()
    other = Peers(store, 1, 2, 0.1)
    other.beat()
    waiting = Peers(store, 0, 2, 0.1, leave=left.append)
    with waiting:
        wait_for(left)
    assert left == [1]
    assert "[rank 0] error: lost rank 1 (" in capsys.readouterr().err


def test_leaving_in_order_and_in_error_are_told_apart() -> None:
    store = Memory()
    for error, state in ((None, "done"), (Stopped(15), "done"), (ValueError("x\ny"), "failed: x")):
        peer = Peers(store, 0, 1, 20.0)
        peer.__enter__()
        peer.__exit__(type(error) if error else None, error, None)
        assert store.values["beat/0"].endswith(state)


def test_ranks_meet_under_a_new_name_whatever_earlier_attempts_have_left() -> None:
    store, names = Memory(), set[str]()
    store.set("ask/1", "an attempt that died before it was answered")
    for attempt in range(3):
        with ThreadPoolExecutor(3) as pool:
            order = [(attempt + i) % 3 for i in range(3)]  # rank 0 first, last, in between
            found = list(pool.map(lambda rank: meet(store, rank, 3), order))
        assert len(set(found)) == 1
        names.add(found[0])
    assert len(names) == 3


@pytest.mark.parametrize(
    ("here", "message"),
    [((0, 2), "rank 1, 3 of 4 has not come"), ((0, 1, 2, 3), "all 4 are there, but do not connect")],
)
def test_ranks_that_do_not_meet_end_and_say_who_is_absent(
    here: tuple[int, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, left = Memory(), list[int]()
    for rank in here:
        store.set(f"here/0/{rank}", "")
    with Joining(store, 0, 4, 0.01, leave=left.append):
        wait_for(left)
    assert left == [1]
    assert message in capsys.readouterr().err
    with Joining(store, 0, 4, 3600, leave=left.append):
        (clock,) = (t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.interval == 3600)
    clock.join(20)
    assert not clock.is_alive(), "goes on although the ranks have met"
    assert left == [1]
