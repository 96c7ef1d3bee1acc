"""The summary of a scored dataset, as the scoring job writes it, made from the rows that are there."""

from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from megaslm.dataset.manifest import SCORES, read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.dataset.score_summary import PartScores, ScoredBy, ScoreSummary
from megaslm.scoring import loss_statistics
from megaslm.scoring.reports import summarise

DEVICE, HOST = "NVIDIA H200", "node1"
RANK_SECONDS = 0.5


def write_scores(dataset: Path, *, fewest_targets: int = loss_statistics.FEWEST_TARGETS) -> ScoreSummary:
    """Each part has a rank of its own; documents of `fewest_targets` are compared."""
    manifest = read_manifest(dataset)
    parts: list[PartScores] = []
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            for part in share.parts:
                rows = RowReader(dataset, split, domain, part.name).rows(0, part.rows)
                statistics = loss_statistics.LossStatistics(
                    manifest.eos_id, rows_share_a_token=manifest.packing.overlap_tokens == 1
                )
                with mock.patch.object(loss_statistics, "FEWEST_TARGETS", fewest_targets):
                    statistics.add(rows["tokens"], rows["ref_loss"])
                    found = statistics.finish()
                by = ScoredBy(
                    host=HOST, rank=len(parts), device=DEVICE, device_type="cuda", threads=1, megaslm_version="0",
                    torch_version="2", transformers_version="5", started=datetime(2026, 1, 2, tzinfo=UTC),
                    rank_seconds=RANK_SECONDS, start_seconds=0.0, targets=found.targets,
                )  # fmt: skip
                scores = PartScores(
                    split=split, domain=domain, part=part.name, rows=part.rows, statistics=found, by=(by,),
                    tokens_per_second=found.targets / RANK_SECONDS,
                )  # fmt: skip
                parts.append(scores)
    summary = summarise(parts, 2e9, "bf16")
    (dataset / SCORES).write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return summary
