"""The conditions under which streaming can be imported; each in an interpreter of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def run(code: str, *, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    search = os.pathsep.join([root, *([str(path)] if path else [])])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCAL_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_stand_ins_are_gone_afterwards_and_ranks_of_the_host_are_known() -> None:
    result = run(
        "import os, sys\n"
        "from megaslm.data.stream import MDSWriter, Stream, StreamingDataset\n"
        "from transformers.utils import is_torchvision_available\n"
        "print([name for name in sys.modules if name.startswith('torchvision')], is_torchvision_available())\n"
        "print(os.environ['LOCAL_WORLD_SIZE'])\n",
        LOCAL_SIZE="3",
    )
    assert result.stdout.splitlines() == ["[] False", "3"], result.stderr


def test_a_torchvision_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    result = run("import megaslm.data.stream", path=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "DataError: torchvision 0.1 does not fit torch" in last
    assert "operator torchvision::nms does not exist" in last
    assert "pip uninstall torchvision" in last
