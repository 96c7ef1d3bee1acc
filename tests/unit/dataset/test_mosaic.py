"""The conditions under which streaming can be imported; each in an interpreter of its own."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.messages import Says


def run(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    search = os.pathsep.join([root, *([str(path)] if path else [])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_stand_ins_are_gone_afterwards() -> None:
    result = run(
        "import sys\n"
        "from megaslm.dataset.mosaic import MDSWriter, get_shuffle\n"
        "from streaming import StreamingDataset\n"
        "from transformers.utils import is_torchvision_available\n"
        "print([name for name in sys.modules if name.startswith('torchvision')], is_torchvision_available())\n"
    )
    assert result.stdout.splitlines() == ["[] False"], result.stderr


def test_a_torchvision_that_does_not_fit_is_named(tmp_path: Path, says: Says) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    result = run("import megaslm.dataset.mosaic", path=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    says(last, "DataError", "torchvision 0.1", "operator torchvision::nms does not exist", TORCH=version("torch"))
