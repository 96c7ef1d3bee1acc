"""Shares of an epoch, by weight or repeat; and what the training stream really draws by them."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaslm.config.plan import BatchPlan
from megaslm.dataset.manifest import DomainSplit, Manifest
from megaslm.errors import DataError
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import Mixture, MixtureDataset, lengthened, plan_mixture
from megaslm.stream.order import Extent, RowOrder
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset

BATCH = 8
AMOUNTS = st.floats(1e-3, 1e3)


def manifest_of(rows: dict[str, int]) -> Manifest:
    shares = {domain: DomainSplit(rows=count, tokens=0, documents=0, parts=()) for domain, count in rows.items()}
    return Manifest(
        kind="tokens", name="n", megaslm_version="0", recipe_sha256="", seq_len=4, vocab_size=100, tokenizer_sha256="",
        tokenizer_files={}, eos_id=2, bos_id=None, domains=tuple(rows), licences={}, splits={"train": shares},
        sources=(),
    )  # fmt: skip


def dataset_of(
    name: str | None, rows: dict[str, int], *, weight: float | None = None, repeat: float = 1.0, folder: str = ""
) -> MixtureDataset:
    local = Path("datasets") / (folder or name or "only")
    return MixtureDataset(name, local, None, manifest_of(rows), tuple(rows), weight, repeat)


@st.composite
def datasets(draw: st.DrawFn) -> list[MixtureDataset]:
    """One to four datasets of one to three domains, all with weights, or with repeats, or with neither."""
    weighted = draw(st.booleans())
    found = []
    for number in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=3))
        rows = {f"d{place}": count for place, count in enumerate(counts)}
        weight = draw(AMOUNTS) if weighted else None
        repeat = 1.0 if weighted else draw(st.just(1.0) | AMOUNTS)
        found.append(dataset_of(f"s{number}", rows, weight=weight, repeat=repeat))
    return found


@given(datasets())
def test_shares_add_up_and_follow_weights_and_rows(given_datasets: list[MixtureDataset]) -> None:
    mixture = plan_mixture(given_datasets)
    assert [stream.domain for stream in mixture.streams] == list(range(len(mixture.domains)))
    assert len(set(mixture.domains)) == len(mixture.domains)
    if all(dataset.weight is None and dataset.repeat == 1 for dataset in given_datasets):
        assert {stream.proportion for stream in mixture.streams} == {None}
        return
    assert math.fsum(stream.proportion or 0.0 for stream in mixture.streams) == pytest.approx(1.0)
    streams = iter(mixture.streams)
    for dataset in given_datasets:
        mine = [next(streams) for _ in dataset.domains]
        share = math.fsum(stream.proportion or 0.0 for stream in mine)
        amount = dataset.rows * dataset.repeat if dataset.weight is None else dataset.weight
        total = sum(one.rows * one.repeat if one.weight is None else one.weight for one in given_datasets)
        assert share == pytest.approx(amount / total)
        for domain, stream in zip(dataset.domains, mine, strict=True):
            assert stream.rows == dataset.manifest.splits["train"][domain].rows
            assert stream.proportion == pytest.approx(share * stream.rows / dataset.rows)


def test_domains_are_called_by_their_stream() -> None:
    one = plan_mixture([dataset_of(None, {"a": 3, "b": 4})])
    assert one.domains == ("a", "b")
    several = plan_mixture([dataset_of("web", {"all": 3}), dataset_of("code", {"python": 2, "c": 1})])
    assert several.domains == ("web", "code/python", "code/c")
    assert [stream.local for stream in several.streams] == [
        Path("datasets/web/train/all"),
        Path("datasets/code/train/python"),
        Path("datasets/code/train/c"),
    ]


def test_a_row_is_called_by_its_domain_and_its_number_there() -> None:
    mixture = plan_mixture([dataset_of("web", {"all": 3}), dataset_of("code", {"python": 2, "c": 1})])
    names = [mixture.row_name(number) for number in range(6)]
    assert names == ["web:0", "web:1", "web:2", "code/python:0", "code/python:1", "code/c:0"]


def test_the_url_of_a_domain_lies_below_its_datasets() -> None:
    dataset = MixtureDataset("web", Path("cache"), "s3://bucket/web", manifest_of({"a": 1}), ("a",))
    (stream,) = plan_mixture([dataset]).streams
    assert (stream.local, stream.remote) == (Path("cache/train/a"), "s3://bucket/web/train/a")


def test_a_domain_that_two_streams_name_is_refused(says: Says) -> None:
    one, other = dataset_of("one", {"a": 3}, folder="same"), dataset_of("other", {"a": 3, "b": 1}, folder="same")
    with pytest.raises(DataError) as refused:
        plan_mixture([one, other])
    says(refused, "other/a: ", "same/train/a", " one ")


def mixture_of(small_rows: int, large_rows: int, small_weight: float | None) -> Mixture:
    large_weight = None if small_weight is None else 1.0
    small = dataset_of("small", {"a": small_rows}, weight=small_weight)
    return plan_mixture([small, dataset_of("large", {"a": large_rows}, weight=large_weight)])


def test_only_streams_with_shares_repeat_rows_in_a_step() -> None:
    assert not mixture_of(10, 99, None).may_repeat_rows
    # Also where an epoch holds less than all of each: a pass may end anywhere.
    assert mixture_of(10, 997, 0.01).may_repeat_rows


@pytest.mark.parametrize(("rows_seen", "first_epoch"), [(0, 0), (8, 1), (16, 1), (24, 1), (32, 2), (48, 2)])
def test_new_rows_come_with_the_next_epoch_that_has_not_started(rows_seen: int, first_epoch: int) -> None:
    before, now = Extent(0, (26,), None), Extent(0, (50,), None)
    order = RowOrder(((26,),), None, BATCH, BATCH, seed=0)
    assert order.rows_per_epoch == 24
    found = lengthened((before,), now, rows_seen, lambda _: order)
    assert found == (before, Extent(first_epoch, (50,), None))
    assert lengthened(found, now, rows_seen, lambda _: order) == found


def test_shares_that_cannot_be_drawn_are_refused(says: Says) -> None:
    mixture_of(10, 990, 0.01).check_epoch(BATCH)
    with pytest.raises(DataError) as refused:
        mixture_of(10, 990, 0.001).check_epoch(BATCH)
    says(refused, "small: ", "10 rows", "0.000999", "1000 rows")
    with pytest.raises(DataError) as refused:
        mixture_of(3, 997, 10.0).check_epoch(BATCH)
    says(refused, "small: ", "3 rows", "0.909", "1000 rows", "256")


def test_the_end_of_the_pass_before_counts_among_the_copies_of_a_row() -> None:
    # 765 rows of a stream of 3 are 255 passes. The end of the pass before makes 256, as many as keys tell apart.
    mixture_of(3, 997, 0.7645 / 0.2355).check_epoch(BATCH)
    with pytest.raises(DataError):
        mixture_of(3, 997, 0.7655 / 0.2345).check_epoch(BATCH)


def drawn(mixture: Mixture, epochs: int) -> list[tuple[Counter[int], Counter[int]]]:
    """Of each epoch, how often each row and each domain came."""
    plan = BatchPlan(
        world_size=1, seq_len=SEQ_LEN, global_batch_rows=BATCH, rows_per_rank=BATCH, micro_batch_rows=4, micro_steps=2,
        total_steps=1, canonical_nodes=8,
    )  # fmt: skip
    stream = TrainingStream(mixture.streams, plan, shuffle_seed=3, workers=0)
    micro_batches = stream.micro_batches(rows_seen=0)
    counts = []
    for _ in range(epochs):
        rows: Counter[int] = Counter()
        domains: Counter[int] = Counter()
        for _ in range(mixture.rows_per_epoch(BATCH) // 4):
            micro_batch = next(micro_batches)
            rows.update(micro_batch.rows.tolist())
            domains.update(micro_batch.domain.tolist())
        counts.append((rows, domains))
    return counts


@pytest.mark.parametrize("weighted", [True, False])
def test_an_epoch_holds_what_was_planned(tmp_path: Path, weighted: bool) -> None:
    web = make_dataset(tmp_path / "web", {("train", "all"): [20, 15]})
    code = make_dataset(tmp_path / "code", {("train", "python"): [9], ("train", "c"): [3]})
    weights = (1.0, 3.0) if weighted else (None, None)
    mixture = plan_mixture(
        [
            MixtureDataset("web", tmp_path / "web", None, web, ("all",), weights[0]),
            MixtureDataset("code", tmp_path / "code", None, code, ("c", "python"), weights[1]),
        ]
    )
    assert mixture.domains == ("web", "code/c", "code/python")
    assert mixture.may_repeat_rows is weighted
    rows_per_epoch = mixture.rows_per_epoch(BATCH)
    assert rows_per_epoch == 40
    for rows, domains in drawn(mixture, epochs=3):
        assert sum(domains.values()) == rows_per_epoch
        first = 0
        for stream in mixture.streams:
            expected = rows_per_epoch * (stream.rows / 47 if stream.proportion is None else stream.proportion)
            assert abs(domains[stream.domain] - expected) <= 1
            mine = [rows[number] for number in range(first, first + stream.rows)]
            assert sum(mine) == domains[stream.domain]
            # A pass may end in an epoch that it has not begun in.
            assert max(mine) <= math.ceil(domains[stream.domain] / stream.rows) + weighted
            first += stream.rows
        assert (max(rows.values()) > 1) is weighted
