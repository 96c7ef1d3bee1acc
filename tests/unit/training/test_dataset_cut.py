"""The threshold of policy `dataset` is the K-th smallest stored loss of all rows that a run reads."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import SCORES
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import Moment
from megaslm.slm.targets import Targets
from megaslm.slm.topk import on_this_rank_alone
from megaslm.slm.valid_targets import valid_targets
from megaslm.training.dataset_cut import with_dataset_threshold
from megaslm.training.selection_rule import rule_of
from megaslm.training.training_data import open_training_data
from tests.chosen import denominator_of
from tests.inspected import EOS_ID, SEQ_LEN, make_inspected
from tests.messages import Says
from tests.scores import write_scores
from tests.toy import run_config

ROWS = {"a": 6, "b": 3}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inspected(tmp_path_factory.mktemp("cut") / "scored", scored=True).folder
    write_scores(folder)
    return folder


def run_on(scored: Path, keep_ratio: str, domains: list[str] | None = None) -> RunConfig:
    return run_config(
        Path("run"),
        scored,
        data={"seq_len": SEQ_LEN, "domains": domains},
        train={"objective": "slm", "global_batch_tokens": SEQ_LEN, "total_tokens": 9 * SEQ_LEN, "micro_batch_rows": 1},
        slm={"policy": "dataset", "criterion": "reference", "keep_ratio": keep_ratio},
        validation={"sets": {}},
    )


def targets_of(scored: Path, domain: str) -> Targets:
    rows = RowReader(scored, "train", domain).rows(0, ROWS[domain])
    tokens = torch.from_numpy(rows["tokens"].astype(np.int64))
    losses = torch.from_numpy(rows["ref_loss"].astype(np.float32))
    return Targets(
        valid_targets(tokens, EOS_ID), target_keys(torch.arange(len(tokens)), 0, SEQ_LEN), {"ref_loss": losses}
    )


@pytest.mark.parametrize("domains", [None, ["b"]])
@pytest.mark.parametrize("keep_ratio", ["0.000001", "0.3", "0.6", "1"])
def test_steps_select_the_easiest_of_all_rows(scored: Path, keep_ratio: str, domains: list[str] | None) -> None:
    config = run_on(scored, keep_ratio, domains)
    resolved = with_dataset_threshold(config, open_training_data(config))
    of_domains = [targets_of(scored, domain) for domain in domains or ROWS]
    losses = np.sort(np.concatenate([part.column("ref_loss")[part.valid].numpy() for part in of_domains]))
    kept = max(1, int(Decimal(keep_ratio) * len(losses) + Decimal("0.5")))
    assert resolved.slm.threshold == -losses[kept - 1]
    # The file of the run, read again.
    again = RunConfig.model_validate(resolved.model_dump())
    assert with_dataset_threshold(again, open_training_data(again)) == resolved
    objective, selected = SelectiveObjective(rule_of(resolved, ROWS)), 0
    for part in of_domains:
        plan = objective.plan_step(part, 1, Moment(1, 0), never_measured, on_this_rank_alone)
        selected += int(denominator_of(plan))
    assert selected == int((losses <= losses[kept - 1]).sum())


def never_measured(number: int) -> Measured:
    raise AssertionError("the reference's losses are known")


def test_another_policy_has_the_threshold_of_its_user(scored: Path) -> None:
    config = run_on(scored, "0.6")
    top = config.model_copy(update={"slm": config.slm.model_copy(update={"policy": "top"})})
    assert with_dataset_threshold(top, open_training_data(top)) is top


def test_a_dataset_that_does_not_count_its_losses_is_refused(scored: Path, tmp_path: Path, says: Says) -> None:
    uncounted = make_inspected(tmp_path / "scored", scored=True).folder
    (uncounted / SCORES).unlink(missing_ok=True)
    config = run_on(uncounted, "0.6")
    with pytest.raises(DataError) as refused:
        with_dataset_threshold(config, open_training_data(config))
    says(str(refused.value), uncounted, "data.train", "a")
