"""The folder of a smoke test, RUN.smoke: no run is resumed, continued or exported from it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from megaslm.config.run_files import LOCK, METRICS, SMOKE, SMOKE_ENDING
from megaslm.errors import ConfigError
from megaslm.files import write_file

# smoke.json is the mark of the folder. It is written first, when it says that the test has not ended.
_KEPT = (SMOKE, LOCK, METRICS)


def smoke_folder(run_dir: str) -> Path:
    """The folder beside a run's folder."""
    run = Path(run_dir)
    return Path(f"{run if run.name not in ('', '..') else run.resolve()}{SMOKE_ENDING}")


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError where a folder holds something else than a smoke test."""
    if folder.is_dir() and ((folder / SMOKE).exists() or not _other_than_lock(folder)):
        return
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"{folder}: a smoke test would empty it, but it holds no smoke test ({SMOKE} is missing); rename it, or "
            "choose another run_dir"
        )


def start_over(folder: Path) -> None:
    """Empties the folder of a smoke test and marks it. Raises ConfigError where it holds something else."""
    check_replaceable(folder)
    write_result(folder, {"passed": None})
    _remove_all_but((SMOKE, LOCK), folder)


def write_result(folder: Path, result: Mapping[str, object]) -> None:
    """Writes smoke.json."""
    write_file(folder / SMOKE, json.dumps(result, indent=1) + "\n")


def leave_results(folder: Path) -> None:
    """Removes everything but the results: a checkpoint of a large model takes much room."""
    _remove_all_but(_KEPT, folder)


def _other_than_lock(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name != LOCK]


def _remove_all_but(kept: tuple[str, ...], folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name not in kept:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
