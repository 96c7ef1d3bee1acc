"""Micro-batches carry the columns that the dataset has, each row its own values."""

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from megaslm.config.plan import BatchPlan
from megaslm.dataset.index import CHECKSUM, merge_index
from megaslm.dataset.mosaic import MDSWriter
from megaslm.dataset.rows import pack_mask
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.errors import DataError
from megaslm.model.documents import Documents
from megaslm.stream.loader import MicroBatch, TrainingStream
from megaslm.stream.mixture import MixtureStream
from tests.messages import Says

ROWS, SEQ_LEN = 12, 4
TOKENS = np.arange(ROWS * (SEQ_LEN + 1), dtype=np.uint16).reshape(ROWS, SEQ_LEN + 1)
LOSSES = np.linspace(0, 9, ROWS * SEQ_LEN, dtype=np.float16).reshape(ROWS, SEQ_LEN)
ENTROPIES = LOSSES[:, ::-1] / 2
WEIGHTS = np.linspace(-3, 3, ROWS * SEQ_LEN, dtype=np.float32).reshape(ROWS, SEQ_LEN)
SELECTED = np.random.default_rng(0).random((ROWS, SEQ_LEN)) < 0.5
PLAN = BatchPlan(
    world_size=1, seq_len=SEQ_LEN, global_batch_rows=ROWS, rows_per_rank=ROWS, micro_batch_rows=ROWS, micro_steps=1,
    total_steps=1, canonical_nodes=4,
)  # fmt: skip
TOKENS_ONLY = RowFormat(SEQ_LEN, 100)
SCORED = RowFormat(SEQ_LEN, 100, scored=True)
ENTROPY = RowFormat(SEQ_LEN, 100, scored=True, entropy=True)
MASKED = RowFormat(SEQ_LEN, 100, masked=True)
WEIGHTED = RowFormat(SEQ_LEN, 100, scored=True, weighted=True)


def first_micro_batch(dataset: Path, row_format: RowFormat, eos_id: int | None = None) -> MicroBatch:
    folder = dataset / "train" / "a"
    with part_writer(folder / "part-00000", row_format) as writer:
        losses = LOSSES if row_format.scored else None
        entropies = ENTROPIES if row_format.entropy else None
        selected = pack_mask(SELECTED) if row_format.masked else None
        writer.write(TOKENS, 0, losses, entropies, selected, weight=WEIGHTS if row_format.weighted else None)
    merge_index(folder, [writer.part])
    streams = [MixtureStream(folder, remote=None, rows=ROWS, domain=0, proportion=None)]
    stream = TrainingStream(streams, PLAN, shuffle_seed=1, workers=0, eos_id=eos_id)
    return next(stream.micro_batches(rows_seen=0))


def test_each_row_has_its_own_values(tmp_path: Path) -> None:
    batch = first_micro_batch(tmp_path, ENTROPY)
    rows = batch.rows.numpy()
    assert sorted(rows) == list(range(ROWS))
    ref_loss, ref_entropy = batch.columns["ref_loss"], batch.columns["ref_entropy"]
    assert (ref_loss.dtype, ref_entropy.dtype) == (torch.float32, torch.float32)
    assert np.array_equal(batch.tokens, TOKENS[rows])
    assert np.array_equal(ref_loss, LOSSES[rows])
    assert np.array_equal(ref_entropy, ENTROPIES[rows])


def test_each_row_has_its_own_mask(tmp_path: Path) -> None:
    batch = first_micro_batch(tmp_path, MASKED)
    assert list(batch.columns) == ["selected"]
    assert batch.columns["selected"].dtype == torch.bool
    assert np.array_equal(batch.columns["selected"], SELECTED[batch.rows.numpy()])
    arrived = ForkingPickler.loads(bytes(ForkingPickler.dumps(batch)))
    assert torch.equal(arrived.columns["selected"], batch.columns["selected"])


ANY = (-3e38, 3e38)


def weighted_stream(folder: Path, weights: np.ndarray, weight_range: tuple[float, float] | None) -> TrainingStream:
    columns = {**TOKENS_ONLY.columns, "weight": f"ndarray:float32:{SEQ_LEN}"}
    with MDSWriter(columns=columns, out=str(folder), hashes=[CHECKSUM]) as writer:
        for tokens, weight in zip(TOKENS, weights, strict=True):
            writer.write({"tokens": tokens, "domain": np.uint16(0), "weight": weight})
    streams = [MixtureStream(folder, remote=None, rows=ROWS, domain=0, proportion=None)]
    return TrainingStream(streams, PLAN, shuffle_seed=1, workers=0, weight_range=weight_range)


def test_each_row_has_its_own_weights(tmp_path: Path) -> None:
    batch = first_micro_batch(tmp_path, WEIGHTED)
    assert batch.columns.keys() == {"ref_loss", "weight"}
    assert batch.columns["weight"].dtype == torch.float32
    assert np.array_equal(batch.columns["weight"], WEIGHTS[batch.rows.numpy()])


@pytest.mark.parametrize(
    ("value", "weight_range"), [(np.nan, ANY), (np.inf, ANY), (-0.5, (0.0, 3e38))], ids=["NaN", "inf", "negative"]
)
def test_a_weight_out_of_range_is_named(
    tmp_path: Path, value: float, weight_range: tuple[float, float], says: Says
) -> None:
    weights = np.abs(WEIGHTS)
    weights[7, 2] = value
    with pytest.raises(DataError) as refused:
        next(weighted_stream(tmp_path / "a", weights, weight_range).micro_batches(rows_seen=0))
    says(refused, "row 7", "target 2", f"{value:g}")


def test_a_run_without_weights_reads_any(tmp_path: Path) -> None:
    batch = next(weighted_stream(tmp_path / "a", WEIGHTS * np.nan, None).micro_batches(rows_seen=0))
    assert "weight" in batch.columns


@pytest.mark.parametrize("row_format", [TOKENS_ONLY, SCORED], ids=["tokens", "scored"])
def test_what_the_dataset_lacks_is_no_column(tmp_path: Path, row_format: RowFormat) -> None:
    batch = first_micro_batch(tmp_path, row_format)
    moved = batch.to(torch.device("cpu"))
    assert list(batch.columns) == list(moved.columns) == (["ref_loss"] if row_format.scored else [])


def test_all_of_it_moves() -> None:
    numbers, nats = torch.arange(3), torch.rand(3, SEQ_LEN)
    batch = MicroBatch(nats, numbers, numbers, 2, {"ref_loss": nats, "selected": nats > 0.5}, document_bounds=numbers)
    there = batch.to(torch.device("meta"))
    moved = (there.tokens, there.rows, there.domain, *there.columns.values(), there.document_bounds)
    assert [tensor.device.type for tensor in moved if tensor is not None] == ["meta"] * 6
    assert there.visit == 2


def test_documents_are_found_on_the_host_if_asked_for(tmp_path: Path) -> None:
    eos_id = int(TOKENS[0, 1])
    batch = first_micro_batch(tmp_path, ENTROPY, eos_id)
    assert batch.document_bounds is not None
    positions = Documents(batch.document_bounds, len(batch.tokens), SEQ_LEN).positions
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = batch.tokens[:, :-2] == eos_id
    assert begins[:, 1:].any()
    assert torch.equal(positions == 0, begins)


def test_between_processes_it_travels_as_bytes(tmp_path: Path) -> None:
    batch = first_micro_batch(tmp_path, ENTROPY)
    sent = bytes(ForkingPickler.dumps(batch))
    assert len(sent) > batch.tokens.nbytes
    arrived = ForkingPickler.loads(sent)
    assert arrived.visit == batch.visit
    for ours, there in ((vars(batch), vars(arrived)), (batch.columns, arrived.columns)):
        tensors = {name: value for name, value in ours.items() if isinstance(value, torch.Tensor)}
        assert tensors
        assert all(torch.equal(value, there[name]) for name, value in tensors.items())
    assert arrived.tokens.dtype == torch.int64
    arrived.tokens.add_(1)


def test_joined_micro_batches_keep_their_rows_and_documents_in_order() -> None:
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    bounds = [[0, 3, 8], [0, 4, 5, 8]]
    parts = [
        MicroBatch(
            tokens[rows],
            rows,
            rows % 3,
            visit=2,
            columns={"ref_loss": rows[:, None] * 1.0},
            document_bounds=torch.tensor(bounds[number], dtype=torch.int32),
        )
        for number, rows in enumerate(torch.tensor([[7, 2], [0, 9]]))
    ]
    whole = MicroBatch.joined(parts)
    assert whole.rows.tolist() == [7, 2, 0, 9]
    assert whole.domain.tolist() == [1, 2, 0, 0]
    assert torch.equal(whole.tokens, tokens[whole.rows])
    assert whole.columns["ref_loss"].flatten().tolist() == [7.0, 2.0, 0.0, 9.0]
    assert whole.visit == 2
    assert whole.document_bounds is not None
    assert whole.document_bounds.tolist() == [0, 3, 8, 8, 12, 13, 16]
    assert whole.document_bounds.dtype == torch.int32
