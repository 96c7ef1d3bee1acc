"""A run measures its probe rows: the same on any number of ranks, after a resume, and by its checkpoints."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from megaslm.config.schema import RunConfig
from megaslm.observe.probe_files import Measurement, ProbeRows, measured_steps, read_measurement, read_rows
from megaslm.training.checkpoints.store import complete_checkpoints, remove_checkpoint, step_folder
from megaslm.training.probe import Probe
from megaslm.training.train import train
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.forks import fork_ranks, statuses_of
from tests.messages import Says
from tests.toy import SEQ_LEN, make_dataset, run_config, write_config
from tests.training import changed, last_weights, losses, run_training, with_steps

STEP_TOKENS = 8 * SEQ_LEN
PROBE = {"every_tokens": 2 * STEP_TOKENS, "rows": 6}


def probe_of(run: Path) -> tuple[ProbeRows, dict[int, Measurement]]:
    rows = read_rows(run / "probe")
    assert rows is not None
    return rows, {step: read_measurement(run / "probe", step, rows) for step in measured_steps(run / "probe")}


def assert_same_losses(one: Path, other: Path, *, tolerance: float = 2e-5) -> None:
    (rows, found), (expected_rows, expected) = probe_of(one), probe_of(other)
    assert rows.sha256 == expected_rows.sha256
    assert found.keys() == expected.keys()
    for step, measurement in found.items():
        assert np.allclose(measurement.losses, expected[step].losses, rtol=0, atol=tolerance), step


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tokens"
    make_dataset(folder, {("train", "a"): [20, 15], ("train", "b"): [30], ("heldout", "a"): [5]})
    return folder


def config_of(run: Path, tokens: Path) -> RunConfig:
    return run_config(
        run,
        tokens,
        train={"schedule": "constant", "total_tokens": 7 * STEP_TOKENS, "micro_batch_rows": 4},
        checkpoint={"every_tokens": 4 * STEP_TOKENS, "keep_last": 5},
        probe=PROBE,
    )


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_training(config_of(run, tokens))
    return run


def test_rows_come_from_every_domain_and_are_held_out_where_some_are(whole: Path) -> None:
    rows, found = probe_of(whole)
    assert rows.domains == ("a", "b")
    assert rows.domain.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.row.tolist() == [0, 1, 3, 0, 10, 20]
    assert list(found) == [0, 2, 4, 6, 7]
    assert [measurement.tokens_seen for measurement in found.values()] == [step * STEP_TOKENS for step in found]
    assert all((one.losses[~rows.valid] == 0).all() and one.kept is None for one in found.values())
    assert found[7].losses[rows.valid].mean() < found[0].losses[rows.valid].mean()


def test_two_ranks_measure_the_same(whole: Path, tokens: Path, tmp_path: Path) -> None:
    run_training(changed(config_of(tmp_path / "run", tokens), probe={**PROBE, "rows": 6}), world_size=2)
    assert_same_losses(tmp_path / "run", whole, tolerance=1e-3)
    (rows, one), (_, other) = probe_of(tmp_path / "run"), probe_of(whole)
    # Before the first step the weights are the same; later those of two ranks differ by rounding.
    assert np.allclose(one[0].losses, other[0].losses, rtol=0, atol=2e-6)
    assert rows.valid.sum() > 50


def test_measuring_changes_nothing_of_the_run(whole: Path, tokens: Path, tmp_path: Path) -> None:
    run_training(changed(config_of(tmp_path / "run", tokens), probe={"every_tokens": None}))
    assert not (tmp_path / "run" / "probe").exists()
    assert losses(tmp_path / "run") == losses(whole)
    assert all((last_weights(whole)[name] == weight).all() for name, weight in last_weights(tmp_path / "run").items())


def test_a_measurement_that_cannot_be_written_stops_nothing(
    whole: Path, tokens: Path, tmp_path: Path, says: Says
) -> None:
    # A folder is where the file would be built.
    obstacle = tmp_path / "run" / "probe" / ".unfinished-step-00000004.safetensors"
    obstacle.mkdir(parents=True)
    config = write_config(tmp_path / "run.yaml", config_of(tmp_path / "run", tokens))
    said = run_megaslm("train", config)
    says(next(line for line in said.splitlines() if "warning: " in line and "probe" in line))
    assert measured_steps(tmp_path / "run" / "probe") == [0, 2, 6, 7]
    refused = run_megaslm("dynamics", tmp_path / "run", "--checkpoints", expect_status=2)
    says(refused.splitlines()[-1], "step 4")
    obstacle.rmdir()
    run_megaslm("dynamics", tmp_path / "run", "--checkpoints")
    assert_same_losses(tmp_path / "run", whole)
    assert losses(tmp_path / "run") == losses(whole)


def test_a_run_that_was_killed_measures_what_it_makes_again(whole: Path, tokens: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", tokens)
    run_training(with_steps(config, 6))
    remove_checkpoint(step_folder(tmp_path / "run" / "checkpoints", 6))
    probe = tmp_path / "run" / "probe"
    # Of step 6 a measurement is left that this run will not make so, and of step 5 one that it will not make at all.
    shutil.copy(probe / "step-00000000.safetensors", probe / "step-00000006.safetensors")
    shutil.copy(probe / "step-00000000.safetensors", probe / "step-00000005.safetensors")
    run_training(config, resume=True)
    assert_same_losses(tmp_path / "run", whole)


def test_a_run_told_to_stop_while_it_measures_does_so_after_the_resume(
    whole: Path, tokens: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run", tokens)

    def stopped() -> None:
        measure = Probe.measure

        def told_first(self: Probe, *arguments: object, **keywords: object) -> bool:
            if keywords["step"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return measure(self, *arguments, **keywords)  # type: ignore[arg-type]

        Probe.measure = told_first  # type: ignore[method-assign, assignment]
        train(config)

    assert statuses_of(fork_ranks(1, stopped)) == [75]
    assert measured_steps(tmp_path / "run" / "probe") == [0]
    run_training(config, resume=True)
    assert_same_losses(tmp_path / "run", whole)


def test_checkpoints_measure_what_the_run_measured(whole: Path, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (4, 7):
        (run / "probe" / f"step-{step:08d}.safetensors").unlink()
    said = run_megaslm("dynamics", run, "--checkpoints")
    assert_same_losses(run, whole)
    assert (run / "dynamics" / "trajectories.parquet").is_file()
    before = (run / "probe" / "step-00000004.safetensors").stat().st_mtime_ns
    run_megaslm("dynamics", run, "--checkpoints", "--json", tmp_path / "numbers.json")
    assert (run / "probe" / "step-00000004.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "numbers.json").is_file()
    says("\n".join(line for line in said.splitlines() if line.startswith("step ")))


def test_a_run_without_probe_rows_is_measured_by_its_checkpoints(chain: Chain, tmp_path: Path, says: Says) -> None:
    config = changed(chain.slm_config(tmp_path / "run"), checkpoint={"every_tokens": 2 * 8 * 16, "keep_last": 4})
    run_training(config, world_size=2)
    said = run_megaslm("dynamics", tmp_path / "run", "--rows", "4", "-o", tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "probe")
    assert rows is not None
    assert rows.ref_loss is not None
    assert measured_steps(tmp_path / "out" / "probe") == [2, 4, 6, 8]
    last = read_measurement(tmp_path / "out" / "probe", 8, rows)
    assert last.kept is not None
    assert last.kept.sum() == round(float(config.slm.keep_ratio) * rows.valid.sum())
    assert not (tmp_path / "run" / "probe").exists()
    assert "kept" in said
    says(
        run_megaslm("dynamics", tmp_path / "run", "--rows", "5", "-o", tmp_path / "out", expect_status=2).splitlines()[
            -1
        ]
    )


def test_a_folder_that_is_no_run_and_other_rows_are_refused(
    whole: Path, tokens: Path, tmp_path: Path, says: Says
) -> None:
    says(run_megaslm("dynamics", tokens, expect_status=2).splitlines()[-1])
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config = changed(config_of(run, tokens), probe={**PROBE, "rows": 8})
    said = run_megaslm("train", "--resume", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(said.splitlines()[-1], "6 rows", "8 rows")
    for checkpoint in complete_checkpoints(run / "checkpoints"):
        remove_checkpoint(checkpoint.folder)
    shutil.rmtree(run / "probe")
    says(run_megaslm("dynamics", run, expect_status=2).splitlines()[-1], "no complete checkpoint")
