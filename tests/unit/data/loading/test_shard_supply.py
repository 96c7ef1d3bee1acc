"""Shards are made ready one by one in the order asked for, urgent ones first; a failure reaches the reader."""

from contextlib import suppress
from threading import Event, Timer

import pytest

from megaslm.data.loading.shard_supply import ShardSupply
from megaslm.errors import DataError


class Work:
    """Makes shards ready when it is let to, and notes which."""

    def __init__(self) -> None:
        self.began, self.may_end, self.done = Event(), Event(), Event()
        self.made: list[int] = []

    def make_ready(self, shard: int) -> None:
        self.began.set()
        assert self.may_end.wait(10)
        self.made.append(shard)
        if shard == 0:
            self.done.set()
        if shard == 13:
            raise DataError("thirteen is damaged")


def test_the_order_is_that_of_asking_and_the_urgent_come_first() -> None:
    work = Work()
    with ShardSupply(work.make_ready) as supply:
        supply.ask(5)
        assert work.began.wait(10)
        for shard in (1, 2, 3, 2, 0):
            supply.ask(shard)
        supply.ask(3, first=True)
        supply.ask(4, first=True)
        work.may_end.set()
        assert work.done.wait(10)
        supply.raise_failure()
    assert work.made == [5, 4, 3, 1, 2, 0]


def test_at_the_end_of_the_rows_what_is_begun_is_finished_and_the_rest_left_undone() -> None:
    work = Work()
    with ShardSupply(work.make_ready) as supply:
        supply.ask(5)
        assert work.began.wait(10)
        supply.ask(0)
        Timer(0.1, work.may_end.set).start()
    assert work.made == [5]


def test_an_exception_waits_for_nothing() -> None:
    work = Work()
    with suppress(DataError), ShardSupply(work.make_ready) as supply:
        supply.ask(5)
        assert work.began.wait(10)
        raise DataError("it failed elsewhere")
    assert work.made == []
    work.may_end.set()


def test_a_failure_ends_the_thread_and_is_raised_for_the_reader() -> None:
    work = Work()
    work.may_end.set()
    with ShardSupply(work.make_ready) as supply:
        supply.ask(13)
        supply.ask(0)
        supply._thread.join(10)
        with pytest.raises(DataError, match="thirteen is damaged"):
            supply.raise_failure()
    assert work.made == [13]
