"""What a run's selection keeps of its probe rows is the top of its own criterion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaslm.config.schema import RunConfig
from megaslm.training.probe_selection import ratio_at, would_keep
from tests.probed import probe_rows
from tests.toy import run_config


def slm(**changes: Any) -> RunConfig:
    return run_config(Path("run"), Path("tokens"), train={"objective": "slm"}, slm={"keep_ratio": "0.5", **changes})


ROWS = replace(probe_rows(scored=True), ref_loss=np.arange(16, dtype=np.float16).reshape(2, 8) % 5)
LOSSES = np.random.default_rng(0).random((2, 8), np.float32) * 4


def kept(config: RunConfig, losses: np.ndarray = LOSSES) -> np.ndarray:
    found = would_keep(config, ROWS, losses, step=1, tokens_seen=100)
    assert found is not None
    return found


@pytest.mark.parametrize("criterion", ["excess", "loss", "reference"])
def test_the_largest_of_all_rows_are_kept(criterion: str) -> None:
    ref_loss = ROWS.ref_loss
    assert ref_loss is not None
    values = {"excess": LOSSES - ref_loss, "loss": LOSSES, "reference": -ref_loss.astype(np.float32)}[criterion]
    found = kept(slm(criterion=criterion))
    assert found.sum() == 8
    assert values[found].min() >= values[~found].max()


@pytest.mark.parametrize("criterion", ["excess", "reference"])
def test_each_policy_keeps_what_a_step_would(criterion: str) -> None:
    ref_loss = ROWS.ref_loss
    assert ref_loss is not None
    values = LOSSES - ref_loss if criterion == "excess" else -ref_loss.astype(np.float32)
    fixed = slm(criterion=criterion, policy="threshold", threshold=-1.0)
    assert np.array_equal(kept(fixed), values >= -1.0)
    assert 0 < kept(fixed).sum() < 16
    assert ratio_at(fixed, 100) is None
    # 4 of 16 are skipped, 8 follow.
    band = kept(slm(criterion=criterion, policy="band", skip_ratio="0.25"))
    assert band.sum() == 8
    assert (values > values[band].max()).sum() <= 4
    assert (values < values[band].min()).sum() <= 4
    cold, warm = (kept(slm(criterion=criterion, policy="stochastic", temperature=one)) for one in (0.001, 100.0))
    assert cold.sum() == warm.sum() == 8
    assert values[cold].min() >= values[~cold].max()
    assert not np.array_equal(cold, warm)


def test_entropies_rank_where_the_criterion_is_theirs() -> None:
    entropies = np.random.default_rng(1).random((2, 8), np.float32)
    found = would_keep(slm(criterion="student_entropy"), ROWS, LOSSES, entropies, step=1, tokens_seen=100)
    assert found is not None
    assert found.sum() == 8
    assert entropies[found].min() >= entropies[~found].max()


def test_scope_sequence_ranks_each_row() -> None:
    assert kept(slm(scope="sequence")).sum(axis=1).tolist() == [4, 4]


def test_documents_are_kept_as_wholes() -> None:
    tokens = ROWS.tokens.copy()
    tokens[:, 3] = ROWS.eos_id
    rows = replace(ROWS, tokens=tokens, valid=tokens[:, :-1] != ROWS.eos_id)
    losses = np.where(np.arange(8) < 3, [[4.0], [3.0]], [[2.0], [1.0]]).astype(np.float32)
    found = would_keep(slm(criterion="loss", granularity="document"), rows, losses, step=1, tokens_seen=100)
    assert found is not None
    # 14 valid targets: 3 and 3 before the EOS, and the first of 4 and 4 behind it.
    assert found.tolist() == [[True] * 3 + [False] + [True] + [False] * 3, [True] * 3 + [False] * 5]


def test_what_is_not_finite_or_not_valid_is_not_kept() -> None:
    losses = LOSSES.copy()
    losses[0, 0] = np.nan
    assert not kept(slm(), losses)[0, 0]
    rows = replace(ROWS, valid=ROWS.valid & (np.arange(8) < 6))
    found = would_keep(slm(), rows, LOSSES, step=1, tokens_seen=100)
    assert found is not None
    assert (found.sum(), found[:, 6:].any()) == (6, False)


def test_the_ratio_is_that_of_the_warm_up() -> None:
    config = slm(keep_ratio_warmup_tokens=200)
    assert ratio_at(config, 100) == "0.750000"
    assert kept(config).sum() == 12


def test_a_run_on_all_tokens_and_rows_without_scores_have_no_mask() -> None:
    causal = run_config(Path("run"), Path("tokens"))
    assert ratio_at(causal, 0) is None
    assert would_keep(causal, ROWS, LOSSES, step=1, tokens_seen=0) is None
    assert would_keep(slm(), probe_rows(), LOSSES, step=1, tokens_seen=0) is None
    masked = replace(probe_rows(), selected=np.eye(2, 8, dtype=bool))
    found = would_keep(slm(criterion="reference", scope="sequence"), masked, LOSSES, step=1, tokens_seen=0)
    assert found is not None
    assert np.array_equal(found, np.eye(2, 8, dtype=bool))
