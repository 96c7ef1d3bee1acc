"""The Triton kernel without a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.launched import ROOT


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here (the extra `gpu` brings it)")
def test_the_kernel_under_tritons_interpreter_gives_what_torch_gives() -> None:
    # Triton reads the variable when the kernel is defined, which in this process may long have happened.
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.unit.slm.test_exponentials import compare_fused_with_torch; compare_fused_with_torch('cpu')",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
