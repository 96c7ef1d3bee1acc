"""How the watchdog tells a rank whose GPU waits for another one's from a rank that does something else."""

import pytest
import torch

from megaslm.health.stacks import MainThread

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]


def test_a_gpu_whose_work_does_not_end_waits_for_others() -> None:
    """A kernel that only spins stands for a collective."""
    main_thread = MainThread(torch.device("cuda", 0))
    torch.cuda.synchronize()
    assert not main_thread.waits_for_others()
    torch.cuda._sleep(3_000_000_000)
    assert main_thread.waits_for_others()
    assert main_thread.waits_for_others()
    torch.cuda.synchronize()
    assert not main_thread.waits_for_others()
