"""The summary of a dataset adds up what was noted of its parts."""

import base64
import json
import math
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megaslm.config.section import Split
from megaslm.dataset.loss_counts import LossCounts
from megaslm.dataset.score_summary import (
    LOSS_BIN_EDGES,
    LOSS_BIN_WIDTH,
    DocumentLoss,
    PartScores,
    PartStatistics,
    ScoredBy,
    read_scores,
)
from megaslm.errors import DataError
from megaslm.scoring.loss_statistics import MOST_DOCUMENTS
from megaslm.scoring.reports import quantile, scored_by, summarise
from tests.messages import Says

H200, EPYC = "NVIDIA H200", "AMD EPYC"
FLOPS = 2e9


def document(row: int, mean_loss: float) -> DocumentLoss:
    return DocumentLoss(row=row, token=5, targets=40, mean_loss=mean_loss)


def part(
    name: str,
    *,
    split: Split = "train",
    domain: str = "a",
    rows: int = 100,
    losses: tuple[float, ...] = (1.0,),
    documents: tuple[DocumentLoss, ...] = (),
    host: str = "node1",
    rank: int = 0,
    device: str = H200,
    rank_seconds: float = 10.0,
    counted: bool = True,
) -> PartScores:
    histogram = np.bincount(np.searchsorted(LOSS_BIN_EDGES, losses, side="right"), minlength=len(LOSS_BIN_EDGES) + 1)
    statistics = PartStatistics(
        targets=len(losses),
        loss_sum=sum(losses),
        loss_counts=LossCounts.of(np.float16(losses)).text() if counted else None,
        histogram=tuple(histogram.tolist()),
        worst=tuple(sorted(documents, key=lambda each: -each.mean_loss)),
        best=tuple(sorted(documents, key=lambda each: each.mean_loss)),
    )
    by = ScoredBy(
        host=host, rank=rank, device=device, device_type="cuda" if device == H200 else "cpu", threads=8,
        megaslm_version="0", torch_version="2", transformers_version="5", started=datetime(2026, 1, 2, tzinfo=UTC),
        rank_seconds=rank_seconds, start_seconds=0.0, targets=len(losses),
    )  # fmt: skip
    return PartScores(
        split=split, domain=domain, part=name, rows=rows, statistics=statistics, by=(by,),
        tokens_per_second=len(losses) / rank_seconds,
    )  # fmt: skip


def test_a_domain_is_all_of_its_parts() -> None:
    summary = summarise(
        [
            part("part-00000", losses=(0.5, 1.5, 2.5)),
            part("part-00001", losses=(7.5,)),
            part("part-00000", domain="b", losses=(4.0,)),
            part("part-00000", split="heldout", losses=(0.001,)),
        ],
        FLOPS,
        "bf16",
    )
    assert [(each.split, each.domain, each.targets) for each in summary.domains] == [
        ("train", "a", 4),
        ("train", "b", 1),
        ("heldout", "a", 1),
    ]
    a = summary.domains[0]
    assert (a.mean, a.perplexity) == (3.0, math.exp(3.0))
    assert sum(a.histogram) == 4
    assert len(a.histogram) == len(summary.bin_edges) + 1


def test_documents_have_the_rows_of_the_domain() -> None:
    parts = [
        part("part-00000", rows=7, documents=(document(3, 2.0), document(6, 1.0))),
        part("part-00001", rows=9, documents=(document(0, 2.0), document(8, 5.0))),
        part("part-00002", documents=(document(1, 1.0),)),
    ]
    (domain,) = summarise(parts, FLOPS, "bf16").domains
    assert [(each.row, each.mean_loss) for each in domain.worst] == [(15, 5.0), (3, 2.0), (7, 2.0), (6, 1.0), (17, 1.0)]
    assert [(each.row, each.mean_loss) for each in domain.best] == [(6, 1.0), (17, 1.0), (3, 2.0), (7, 2.0), (15, 5.0)]


def test_as_many_documents_are_kept_of_a_domain_as_of_a_part() -> None:
    parts = [part(f"part-{number:05d}", documents=tuple(map(document, range(6), range(6)))) for number in range(3)]
    (domain,) = summarise(parts, FLOPS, "bf16").domains
    assert [each.mean_loss for each in domain.worst] == [5.0] * 3 + [4.0] * 3 + [3.0] * 3 + [2.0]
    assert len(domain.worst) == len(domain.best) == MOST_DOCUMENTS


def test_what_it_took() -> None:
    parts = [
        part("part-00000", losses=(1.0,) * 3000, rank_seconds=30.0),
        part("part-00001", losses=(1.0,) * 1000, rank_seconds=5.0, rank=1),
        part("part-00002", losses=(1.0,) * 1000, rank_seconds=5.0, host="node2"),
    ]
    summary = summarise(parts, FLOPS, "bf16")
    assert (summary.targets, summary.rank_seconds, summary.ranks) == (5000, 40.0, 3)
    assert summary.tokens_per_second_per_rank == 125.0
    assert summary.gpu_hours == 40 / 3600
    assert summary.mfu == pytest.approx(5000 * FLOPS / (40 * 989e12))
    assert [each.tokens_per_second for each in summary.parts] == [100.0, 200.0, 200.0]
    (device,) = summary.devices
    assert (device.device, device.hosts, device.ranks, device.parts) == (H200, 2, 3, 3)
    assert (device.targets, device.rank_seconds, device.mfu) == (5000, 40.0, summary.mfu)


def test_where_a_peak_is_not_known_no_utilisation_is_claimed() -> None:
    parts = [part("part-00000", rank_seconds=36.0), part("part-00001", device=EPYC, rank_seconds=4.0)]
    summary = summarise(parts, FLOPS, "bf16")
    assert summary.mfu is None
    assert summary.gpu_hours == 0.01
    assert [(each.device, each.mfu is None) for each in summary.devices] == [(EPYC, True), (H200, False)]
    assert [each.mfu for each in summarise(parts, FLOPS, "fp32").devices] == [None, None]


def losses_of_text(seed: int, count: int) -> NDArray[np.float16]:
    """Losses as a reference gives them: most tokens are easy, the others spread around 7 nats; values repeat."""
    generator = np.random.default_rng(seed)
    easy, hard = generator.exponential(0.4, count // 3), generator.normal(7.6, 1.8, count - count // 3)
    return np.concatenate([easy, hard]).clip(0).astype(np.float16)


def test_median_and_p95_are_those_of_numpy_over_all_parts() -> None:
    of_parts = [losses_of_text(seed, count) for seed, count in enumerate((5_001, 40_000, 17))]
    parts = [part(f"part-{number:05d}", losses=tuple(losses.tolist())) for number, losses in enumerate(of_parts)]
    (domain,) = summarise(parts, FLOPS, "bf16").domains
    losses = np.concatenate(of_parts).astype(np.float64)
    assert domain.median == np.median(losses)
    assert domain.p95 == np.quantile(losses, 0.95)
    assert domain.loss_counts is not None
    assert len(domain.loss_counts) < 40_000
    assert LossCounts.parse(domain.loss_counts).targets == len(losses)


def test_parts_that_are_added_later_count_too(tmp_path: Path) -> None:
    parts = [part(f"part-{number:05d}", losses=tuple(losses_of_text(number, 999).tolist())) for number in range(3)]
    summary = summarise(parts, FLOPS, "bf16")
    (tmp_path / "scores.json").write_text(summarise(parts[:2], FLOPS, "bf16").model_dump_json())
    before = read_scores(tmp_path)
    assert before is not None
    assert {each.statistics.loss_counts for each in before.parts} == {None}
    assert summarise([*before.parts, parts[2]], FLOPS, "bf16", before) == summary
    # The new scores.json was written, then a kill came before the new manifest.
    assert summarise([*before.parts, parts[2]], FLOPS, "bf16", summary) == summary


def test_a_summary_of_an_earlier_build_gives_quantiles_within_a_bin(tmp_path: Path) -> None:
    losses = losses_of_text(0, 5_000)
    parts = [part("part-00000", losses=tuple(losses.tolist()), counted=False), part("part-00001", losses=(7.0,) * 99)]
    written = summarise(parts, FLOPS, "bf16").model_dump(mode="json")
    for record in (*written["domains"], *(each["statistics"] for each in written["parts"])):
        assert record.pop("loss_counts") is None
    (tmp_path / "scores.json").write_text(json.dumps(written))
    found = read_scores(tmp_path)
    assert found is not None
    for summary in (found, summarise([*found.parts, part("part-00002")], FLOPS, "bf16", found)):
        (domain,) = summary.domains
        assert domain.loss_counts is None
        assert domain.median == pytest.approx(float(np.median(losses.astype(np.float64))), rel=LOSS_BIN_WIDTH)


@pytest.mark.parametrize(
    "text",
    ["", "no base64!", LossCounts.of(np.float16([1.0])).text()[:40], base64.b64encode(b"x" * 99).decode()],
    ids=["empty", "no base64", "cut off", "not compressed"],
)
def test_counts_that_cannot_be_unpacked_are_refused(text: str, says: Says) -> None:
    with pytest.raises(ValueError) as refused:
        LossCounts.parse(text)
    # Python's reason follows, which its versions word otherwise.
    says.without_numbers(str(refused.value).partition(": ")[0])


def test_counts_that_unpack_to_more_than_they_may_are_refused(says: Says) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(100_000_000))).decode()
    with pytest.raises(ValueError) as refused:
        LossCounts.parse(bomb)
    says(refused, "253953 bytes", "253952")


def test_quantiles_lie_within_a_bin_of_the_true_ones() -> None:
    losses = np.random.default_rng(0).lognormal(0, 1.5, 100_000).astype(np.float16)
    histogram = np.bincount(np.searchsorted(LOSS_BIN_EDGES, losses, side="right"), minlength=len(LOSS_BIN_EDGES) + 1)
    for share in (0.05, 0.5, 0.95):
        assert quantile(histogram.tolist(), share) == pytest.approx(np.quantile(losses, share), rel=0.01)


def test_quantiles_of_the_bins_without_an_edge() -> None:
    bins = len(LOSS_BIN_EDGES) + 1
    assert quantile([4, *[0] * (bins - 1)], 0.5) == LOSS_BIN_EDGES[0] / 2
    assert quantile([*[0] * (bins - 1), 4], 0.5) == LOSS_BIN_EDGES[-1] == 32.0


def test_this_process_is_described() -> None:
    by = scored_by(3, torch.device("cpu"), 7, 1.5, 0.25)
    assert (by.rank, by.device_type, by.threads, by.torch_version) == (
        3,
        "cpu",
        torch.get_num_threads(),
        torch.__version__,
    )
    assert (by.targets, by.rank_seconds, by.start_seconds) == (7, 1.5, 0.25)
    assert by.host
    assert by.device
    assert 1.5 <= (datetime.now(UTC) - by.started).total_seconds() < 60
    assert by.started.tzinfo == UTC


def test_the_summary_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    parts = [
        part("part-00000", documents=(document(1, 1 / 3),), device=EPYC, rank_seconds=0.1),
        # A perplexity beyond all numbers.
        part("part-00000", domain="b", losses=(60_000.0,)),
    ]
    summary = summarise(parts, FLOPS / 3, "bf16")
    assert read_scores(tmp_path) is None
    (tmp_path / "scores.json").write_text(summary.model_dump_json(indent=1))
    found = read_scores(tmp_path)
    assert found == summary
    assert found is not None
    assert found.domains[1].perplexity == math.inf
    again = summarise(found.parts, FLOPS / 3, "bf16", found)
    assert again == summary, "a summary has all that another is made of"


def test_a_file_that_is_no_summary_is_refused(tmp_path: Path, says: Says) -> None:
    (tmp_path / "scores.json").write_text('{"targets": 3}')
    with pytest.raises(DataError) as refused:
        read_scores(tmp_path)
    says(str(refused.value).splitlines()[0], tmp_path / "scores.json")
