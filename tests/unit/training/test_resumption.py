"""Whether a run may go on in its folder, by the data and the settings that it had so far."""

import json
from pathlib import Path

import pytest

from megaslm.config.run_files import PROGRESS
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import ConfigError
from megaslm.training.checkpoints.file_list import describe, write_file_list
from megaslm.training.checkpoints.progress import Progress
from megaslm.training.resumption import check_run, is_finished
from megaslm.training.training_data import open_training_data
from tests.messages import Says
from tests.toy import make_dataset, run_config
from tests.training import changed, with_steps


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two datasets, `web` and `code`."""
    make_dataset(tmp_path / "web", {("train", "a"): [12], ("train", "b"): [8]})
    make_dataset(tmp_path / "code", {("train", "python"): [9]}, seed=1)
    return tmp_path


def streams_config(folders: Path, **weights: float) -> RunConfig:
    streams = {name: {"dataset": str(folders / name), "weight": weight} for name, weight in weights.items()}
    return run_config(folders / "run", folders / "web", data={"train": None, "streams": streams})


def identity_of(dataset: Path) -> dict[str, str | None]:
    manifest = read_manifest(dataset)
    return {
        "tokens_sha256": manifest.tokens_fingerprint(),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "reference_weights_sha256": None,
    }


def leave_run(config: RunConfig, provenance: dict[str, object]) -> None:
    """The run folder as an earlier attempt left it."""
    run = Path(config.run_dir)
    run.mkdir()
    (run / "config.yaml").write_text(dump(config))
    (run / "manifest.json").write_text(json.dumps(provenance))


def resume(config: RunConfig) -> list[str]:
    return check_run(config, open_training_data(config).read, resume=True)


@pytest.fixture
def mixed(folders: Path) -> Path:
    """The datasets, and a run that has read both, three times as much of `code`."""
    datasets = {f"data.streams.{name}": identity_of(folders / name) for name in ("web", "code")}
    leave_run(streams_config(folders, web=1.0, code=3.0), {"datasets": datasets})
    return folders


def test_a_run_of_version_0_1_0_resumes(folders: Path, says: Says) -> None:
    config = run_config(folders / "run", folders / "web")
    leave_run(config, {"dataset": str(folders / "web"), "data": identity_of(folders / "web")})
    assert resume(config) == []
    other = run_config(folders / "run", folders / "code")
    with pytest.raises(ConfigError) as refused:
        resume(other)
    says(refused, "data.train.tokens_sha256")


def test_a_mixture_resumes_as_it_was_alone(mixed: Path, says: Says) -> None:
    assert resume(streams_config(mixed, web=1.0, code=3.0)) == []
    with pytest.raises(ConfigError) as refused:
        resume(streams_config(mixed, web=1.0, code=2.0))
    says(refused, "data.streams.code.weight: 3.0 → 2.0")
    for weights, found in (
        ({"code": 3.0, "web": 1.0}, "data.streams.code, data.streams.web"),
        ({"web": 1.0}, "data.streams.web"),
    ):
        with pytest.raises(ConfigError) as refused:
            resume(streams_config(mixed, **weights))
        says(refused, "data.streams.code", found)


def test_datasets_may_move(mixed: Path) -> None:
    (mixed / "code").rename(mixed / "moved")
    config = streams_config(mixed, web=1.0, code=3.0).model_dump()
    config["data"]["streams"]["code"]["dataset"] = str(mixed / "moved")
    assert resume(RunConfig.model_validate(config)) == [
        f"data.streams.code.dataset: {mixed / 'code'} → {mixed / 'moved'}"
    ]


def save_progress(run: Path, progress: Progress) -> Path:
    checkpoint = run / "checkpoints" / f"step-{progress.step:08d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / PROGRESS).write_text(progress.as_json())
    write_file_list(checkpoint, {PROGRESS: describe(checkpoint / PROGRESS)})
    return checkpoint


def test_a_run_is_finished_once_its_last_step_is_saved_and_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = run_config(run, tmp_path / "web")
    assert not is_finished(config)
    save_progress(run, Progress(step=5))
    assert not is_finished(config)
    (run / "config.yaml").write_text(dump(config))
    assert not is_finished(config)
    save_progress(run, Progress(step=6, validation_is_due=True))
    assert not is_finished(config)
    last = save_progress(run, Progress(step=6))
    assert is_finished(config)
    assert not is_finished(with_steps(config, 7))
    assert not is_finished(with_steps(config, 5))

    probing = changed(config, probe={"every_tokens": 1000})
    assert not is_finished(probing)
    (run / "config.yaml").write_text(dump(probing))
    assert not is_finished(probing)
    (run / "probe").mkdir()
    (run / "probe" / "step-00000006.safetensors").touch()
    assert is_finished(probing)
    assert is_finished(probing.model_copy(update={"run_dir": str(run.rename(tmp_path / "moved"))}))
    (tmp_path / "moved").rename(run)

    # The ranks resume from the checkpoint before it.
    (last / PROGRESS).write_text("{}")
    assert not is_finished(probing)
    (last / PROGRESS).unlink()
    assert not is_finished(probing)
