"""What an import brings along or cannot do without; each in an interpreter of its own."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.messages import Says

ROOT = Path(__file__).resolve().parents[3]
# configs/eval has tasks, no runs.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "eval" not in path.parts)
RESOLVE_ALL = """
import pkgutil, sys
import megaslm.config
for module in pkgutil.iter_modules(megaslm.config.__path__, "megaslm.config."):
    __import__(module.name)
from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.load import load
from megaslm.config.plan import plan_batches
from megaslm.config.schema import RunConfig
for path in sys.argv[1:]:
    config = load(RunConfig, path).value
    if config.train.epochs is not None:
        # What the dataset would say.
        train = config.train.model_copy(update={"total_tokens": 10**9})
        config = config.model_copy(update={"train": train})
    for world_size in (1, 8, 64):
        deepspeed_settings(config, plan_batches(config, world_size), precision="bf16", on_gpu=True)
heavy = {"torch", "deepspeed", "transformers", "streaming", "numpy"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
"""


def run(code: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(ROOT), *([str(path)] if path else [])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def loaded() -> "subprocess.CompletedProcess[str]":
    """An interpreter that has imported the large libraries."""
    return run(
        "import sys\n"
        "from megaslm.cli_output import leave_out_needless_lines\n"
        "leave_out_needless_lines()\n"
        "from megaslm.dataset.mosaic import MDSWriter, get_shuffle\n"
        "from streaming import StreamingDataset\n"
        "from transformers.utils import logging\n"
        "print([name for name in sys.modules if name.startswith(('torchvision', 'streaming.vision'))])\n"
        "import megaslm.model.export\n"
        "from deepspeed.accelerator import get_accelerator\n"
        "get_accelerator()\n"
        "print(logging.is_progress_bar_enabled())\n"
    )


def test_readers_of_images_are_left_out_during_the_import_only(loaded: "subprocess.CompletedProcess[str]") -> None:
    assert loaded.stdout.splitlines()[0] == "[]", loaded.stderr


def test_libraries_print_no_lines_between_ours(loaded: "subprocess.CompletedProcess[str]") -> None:
    assert (loaded.stdout.splitlines()[1:], loaded.stderr) == (["False"], "")


def test_a_torchvision_that_does_not_fit_is_named(tmp_path: Path, says: Says) -> None:
    """transformers imports it where it is installed; mosaicml-streaming would too."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    program = "from megaslm.cli_output import loading\nimport megaslm.dataset.mosaic\nwith loading('train'):\n    "
    result = run(program + "import megaslm.model.export", path=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    says(last, "BrokenLibrary", "torchvision 0.1", "operator torchvision::nms does not exist", TORCH=version("torch"))


def test_all_configurations_resolve_for_1_8_and_64_ranks_without_torch() -> None:
    assert len(CONFIGS) > 10
    result = run(RESOLVE_ALL, *map(str, CONFIGS))
    assert result.returncode == 0, result.stderr


def test_a_missing_driver_of_object_storage_names_the_extra() -> None:
    program = """
import sys
sys.modules["s3fs"] = None
from megaslm.storage.remote import describe_remote, read_bytes
from megaslm.storage.uploads import write_bytes
from megaslm.errors import ConfigError
for ask in (describe_remote, read_bytes):
    try:
        ask("s3://bucket/x")
    except ConfigError as error:
        print(error)
"""
    done = run(program)
    assert done.stdout.count("`make install EXTRAS=s3`") == 2, done.stderr


def test_importing_object_storage_loads_no_driver() -> None:
    program = "import sys, megaslm.storage.remote; print({'fsspec', 's3fs', 'aiohttp'} & set(sys.modules))"
    done = run(program)
    assert done.stdout.strip() == "set()", done.stderr
