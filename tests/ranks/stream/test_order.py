"""The order of rows: streaming's where every row comes once an epoch, pass after pass where streams have shares."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import read_index
from megaslm.dataset.manifest import read_manifest
from megaslm.engine.distributed import join_world
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import Mixture, MixtureDataset, plan_mixture
from megaslm.stream.order import RowOrder, extent_of, first_place, order_of
from tests.forks import fork_ranks, statuses_of
from tests.pairwise import pairwise
from tests.toy import SEQ_LEN, make_dataset

SEED = 3
GOLDEN = json.loads(Path(__file__).with_name("golden_order.json").read_text())
"""Recorded from StreamingDataset with mosaicml-streaming 0.13, on 1, 2 and 4 ranks with 0 and 2 loader processes, which
all agreed: SHARDS / rows of a step / canonical nodes → rows seen → the rows of the next steps."""
GOLDEN_SHARES = json.loads(Path(__file__).with_name("golden_shares.json").read_text())
"""Recorded once; the first build with shares, and the first whose streams could become longer, had the same: mixture /
rows of a step → rows seen → the rows of the next steps."""
SHARDS = {"one": ((40, 33), (21,)), "whole": ((48, 16, 32),), "two": ((40, 33), (21,), (17, 30))}


def rows_of(order: RowOrder, epoch: int) -> list[int]:
    numbers = np.empty(order.rows_in(epoch), order.dtype)
    order.fill(epoch, numbers)
    return numbers.tolist()


def rows_from(order: RowOrder, rows_seen: int, count: int) -> list[int]:
    epoch, into = order.place_of(rows_seen)
    epochs = itertools.chain.from_iterable(rows_of(order, number) for number in itertools.count(epoch))
    return list(itertools.islice(epochs, into, into + count))


@pytest.mark.parametrize("case", GOLDEN)
def test_without_shares_it_is_streamings(case: str) -> None:
    name, batch_rows, canonical_nodes = case.split("/")
    order = RowOrder(SHARDS[name], None, int(batch_rows), int(canonical_nodes), SEED)
    for rows_seen, expected in GOLDEN[case].items():
        assert rows_from(order, int(rows_seen), len(expected)) == expected


@settings(deadline=None)
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple),
    epoch=st.integers(0, 5),
    batch_rows=st.sampled_from([1, 4, 12]),
)
def test_as_many_rows_of_a_shard_stay_as_streaming_would_sample(
    shards: tuple[int, ...], epoch: int, batch_rows: int
) -> None:
    # Importable once megaslm.dataset.mosaic has been imported, as it was by now.
    from streaming.base.sampling import get_sampling

    order = RowOrder((shards,), None, batch_rows, 1, SEED)
    if order.rows_per_epoch:
        ends = np.cumsum(shards)
        rows = rows_of(order, epoch)
        assert len(set(rows)) == len(rows)
        expected = get_sampling(np.array(shards), order.rows_per_epoch, 1, SEED, epoch, True)
        found = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(shards))
        assert found.tolist() == expected.tolist()


@settings(deadline=None)
@given(
    streams=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    data=st.data(),
)
def test_no_row_of_a_stream_comes_again_before_every_other_has_come(
    streams: list[tuple[int, ...]], data: st.DataObject
) -> None:
    shares = data.draw(st.lists(st.floats(0.05, 5), min_size=len(streams), max_size=len(streams)))
    order = RowOrder(tuple(streams), tuple(shares), batch_rows=4, canonical_nodes=4, seed=SEED)
    if not order.rows_per_epoch:
        return
    ends = np.cumsum([sum(shards) for shards in streams])
    counts = [Counter(dict.fromkeys(range(sum(shards)), 0)) for shards in streams]
    drawn = [rows_of(order, epoch) for epoch in range(5)]
    for number in itertools.chain.from_iterable(drawn):
        stream = int(np.searchsorted(ends, number, side="right"))
        counts[stream][number - (int(ends[stream - 1]) if stream else 0)] += 1
        assert max(counts[stream].values()) - min(counts[stream].values()) <= 1
    for stream, share in enumerate(shares):
        expected = share / sum(shares) * order.rows_per_epoch
        assert all(
            abs(int((np.searchsorted(ends, rows, side="right") == stream).sum()) - expected) <= 1 for rows in drawn
        )


@st.composite
def longer_and_longer(draw: st.DrawFn) -> list[RowOrder]:
    """The same streams three times, some of them with more shards from one to the next."""
    streams = draw(st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=6), min_size=1, max_size=3))
    shares = draw(st.none() | st.lists(st.floats(0.05, 5), min_size=len(streams), max_size=len(streams)).map(tuple))
    counts = [sorted(draw(st.lists(st.integers(1, len(sizes)), min_size=3, max_size=3))) for sizes in streams]
    orders: list[RowOrder] = []
    for stage, first_epoch in enumerate([0, draw(st.integers(0, 2)), 3]):
        shards = tuple(tuple(sizes[: count[stage]]) for sizes, count in zip(streams, counts, strict=True))
        orders.append(RowOrder(shards, shares, 2, 2, SEED, orders[-1] if orders else None, first_epoch))
    return orders


@settings(deadline=None)
@given(longer_and_longer())
def test_streams_that_become_longer_end_their_epoch_and_their_pass(orders: list[RowOrder]) -> None:
    if not orders[0].rows_per_epoch:
        return
    last, epochs = orders[-1], range(8)
    holding = [next(order for order in reversed(orders) if order.first_epoch <= epoch) for epoch in epochs]
    begin = 0
    for epoch in epochs:
        rows = last.rows_in(epoch)
        assert rows == holding[epoch].rows_per_epoch
        assert last.place_of(begin) == (epoch, 0)
        assert last.place_of(begin + rows - 1) == (epoch, rows - 1)
        begin += rows
    had: list[Counter[int]] = [Counter() for _ in last.shards]
    for epoch in epochs:
        rows_by_name = named(last, epoch)
        assert rows_by_name == named(holding[epoch], epoch)
        assert last.shares is not None or len(set(rows_by_name)) == len(rows_by_name)
        for counts, shards in zip(had, holding[epoch].shards, strict=True):
            # What is new joins the pass that the stream is in.
            passes = min(counts.values(), default=0)
            counts.update({row: passes for row in range(sum(shards)) if row not in counts})
        for stream, row in rows_by_name:
            had[stream][row] += 1
            assert last.shares is None or max(had[stream].values()) - min(had[stream].values()) <= 1


def named(order: RowOrder, epoch: int) -> list[tuple[int, int]]:
    """An epoch's rows, each as its stream and its place in it, whatever the numbers of rows are."""
    numbers = np.empty(order.rows_in(epoch), order.dtype)
    order.fill(epoch, numbers)
    ends = np.cumsum([sum(shards) for shards in order.shards])
    streams = np.searchsorted(ends, numbers, side="right")
    places = numbers.astype(np.int64) - np.concatenate([[0], ends])[streams]
    return list(zip(streams.tolist(), places.tolist(), strict=True))


def test_rows_come_in_another_order_in_each_epoch_and_pass() -> None:
    even = RowOrder(((64, 64),), None, 8, 8, SEED)
    shared = RowOrder(((64, 64), (128,)), (0.5, 0.5), 8, 8, SEED)
    for order in (even, shared):
        epochs = [rows_of(order, epoch) for epoch in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(order.rows))


@pytest.mark.parametrize(("world_size", "host_ranks"), [(1, 1), (8, 8), (8, 4), (8, 2), (6, 4), (12, 3)])
def test_ranks_share_a_step_without_a_gap(world_size: int, host_ranks: int) -> None:
    places = [first_place(rank, world_size, host_ranks) for rank in range(world_size)]
    assert sorted(places) == list(range(world_size))
    if world_size % host_ranks == 0:
        hosts = world_size // host_ranks
        # Canonical nodes lie at distances of their number, so a host has its own.
        assert all(places[rank] % hosts == rank // host_ranks for rank in range(world_size))


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mixture]:
    folder = tmp_path_factory.mktemp("order")
    make_dataset(folder / "a", {("train", "x"): [40, 33], ("train", "y"): [21]})
    make_dataset(folder / "b", {("train", "z"): [17, 30]}, seed=5)

    def dataset(name: str, domains: tuple[str, ...], weight: float | None, repeat: float = 1.0) -> MixtureDataset:
        return MixtureDataset(name, folder / name, None, read_manifest(folder / name), domains, weight, repeat)

    return {
        "even": plan_mixture([dataset("a", ("x", "y"), None), dataset("b", ("z",), None)]),
        "weights": plan_mixture([dataset("a", ("x", "y"), 0.7), dataset("b", ("z",), 0.3)]),
        "repeat": plan_mixture([dataset("a", ("x", "y"), None), dataset("b", ("z",), None, repeat=2.5)]),
    }


def plan_of(world_size: int, batch_rows: int) -> BatchPlan:
    """Micro-batches of two rows."""
    return BatchPlan(world_size, SEQ_LEN, batch_rows, batch_rows // world_size, 2, batch_rows // world_size // 2, 10, 8)


@pytest.mark.parametrize("case", GOLDEN_SHARES)
def test_with_shares_it_is_as_it_was(mixtures: dict[str, Mixture], case: str) -> None:
    name, batch_rows = case.split("/")
    streams = mixtures[name.removesuffix("-longer")].streams
    now, extents = extent_of(streams), ()
    if name.endswith("-longer"):
        # The second shards of two streams join in the second epoch.
        extents = now._replace(rows=(40, 21, 17)), now._replace(first_epoch=1)
    indices = [read_index(stream.local) for stream in streams]
    order = order_of(streams, indices, plan_of(1, int(batch_rows)), SEED, extents)
    for rows_seen, expected in GOLDEN_SHARES[case].items():
        assert rows_from(order, int(rows_seen), len(expected)) == expected


LAYOUTS = pairwise(
    list(itertools.product(["even", "weights"], [1, 2, 4], [0, 2])),
    lambda case: dict(zip(("name", "world_size", "workers"), case, strict=True)),
)


@pytest.mark.parametrize(("name", "world_size", "workers"), LAYOUTS)
def test_a_step_reads_the_same_rows_on_any_ranks(
    mixtures: dict[str, Mixture], tmp_path: Path, name: str, world_size: int, workers: int
) -> None:
    mixture, batch_rows, steps = mixtures[name], 8, 4
    plan = plan_of(world_size, batch_rows)
    shares = tuple(stream.proportion for stream in mixture.streams if stream.proportion is not None) or None
    order = RowOrder(SHARDS["two"], shares, batch_rows, 8, SEED)
    starts = (0, 3 * batch_rows, order.rows_per_epoch - batch_rows, order.rows_per_epoch + batch_rows)

    def read() -> None:
        if world_size > 1:
            join_world()
        stream = TrainingStream(mixture.streams, plan, shuffle_seed=SEED, workers=workers)
        for rows_seen in starts:
            batches = stream.micro_batches(rows_seen)
            rows = [next(batches).rows.tolist() for _ in range(steps * plan.micro_steps)]
            batches.close()
            said = tmp_path / f"{rows_seen}-{os.environ.get('RANK', '0')}"
            said.write_text(json.dumps(list(itertools.chain.from_iterable(rows))))

    assert statuses_of(fork_ranks(world_size, read)) == [0] * world_size
    for rows_seen in starts:
        ranks = [json.loads((tmp_path / f"{rows_seen}-{rank}").read_text()) for rank in range(world_size)]
        # Ranks of one host take turns.
        together = [row for turn in zip(*ranks, strict=True) for row in turn]
        assert together == rows_from(order, rows_seen, steps * batch_rows)
