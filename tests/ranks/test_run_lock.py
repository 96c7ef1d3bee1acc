"""A run folder has one job at a time."""

import os
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.training.run_folder import take
from tests.forks import statuses_of, wait_until
from tests.messages import Says, line_with
from tests.toy import make_dataset, run_config
from tests.training import run_training, start_training


def test_a_second_job_in_a_run_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    monkeypatch.setattr("megaslm.training.run_folder.PATIENCE_SECONDS", 1.0)
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = run_config(tmp_path / "run", tmp_path / "tokens", train={"total_tokens": 10_000_000})
    first = start_training(config)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    run_training(config, resume=True, expect_status=2)
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    run_training(config.model_copy(update={"run_dir": str(tmp_path / "alias")}), resume=True, expect_status=2)
    with pytest.raises(ConfigError) as refused, ExitStack() as held:
        list(take(tmp_path / "run", held))
    says(refused, f"run_dir = {tmp_path / 'run'}: ")
    os.kill(first[0], signal.SIGTERM)
    assert statuses_of(first) == [75]
    said = capfd.readouterr()
    assert str(refused.value) in said.err
    says(line_with(said.out, tmp_path / "run", "1 s"))


def test_who_waited_for_a_refused_start_holds_the_folder(tmp_path: Path, says: Says) -> None:
    """The refused start removes the very file that the other one waits for."""
    first, second = ExitStack(), ExitStack()
    list(take(tmp_path / "run", first))
    waiting = threading.Thread(target=lambda: list(take(tmp_path / "run", second, patience_seconds=30)))
    waiting.start()
    wait_until(lambda: len(descriptors_of(tmp_path / "run" / ".lock")) == 2)
    first.close()
    waiting.join()
    with ExitStack() as third, pytest.raises(ConfigError) as refused:
        list(take(tmp_path / "run", third))
    says(refused, tmp_path / "run")
    second.close()
    assert not (tmp_path / "run").exists()


def descriptors_of(path: Path) -> list[Path]:
    """The descriptors of this process that have the file open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if descriptor.readlink() == path:
                found.append(descriptor)
    return found
