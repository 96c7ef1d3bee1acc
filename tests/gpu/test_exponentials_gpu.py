"""The fused loss head on a GPU: the kernel that runs under Triton's interpreter elsewhere, compiled."""

from importlib.util import find_spec

import pytest
import torch

from megaslm.slm.exponentials import exponentials
from tests.unit.slm.test_exponentials import compare_fused_with_torch, exact, inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here (the extra `gpu` brings it)"),
]


def test_the_kernel_gives_what_torch_gives() -> None:
    compare_fused_with_torch("cuda")


def test_logits_on_a_gpu_go_to_the_kernel() -> None:
    logits, targets = (tensor.cuda() for tensor in inputs(32_000))
    kept = logits.clone()
    out = torch.empty_like(logits, dtype=torch.bfloat16)
    losses, norms = exponentials(logits, targets, out)
    expected_losses, expected_norms, expected = exact(kept, targets)
    # Torch writes over its logits, the kernel reads them only.
    assert logits.equal(kept)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(norms.double(), expected_norms, rtol=2e-6, atol=0)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-6)


def test_rows_beyond_two_billion_logits() -> None:
    rows, vocab = 66_000, 32_768
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of free GPU memory")
    logits = torch.zeros(rows, vocab, device="cuda")
    logits[-1] = torch.arange(vocab, device="cuda") / vocab
    expected = exact(logits[-1:], torch.tensor([5], device="cuda"))
    losses, norms = exponentials(logits, torch.full((rows,), 5, device="cuda"), logits)
    assert (norms[:-1] == vocab).all()
    found = (losses[-1:].double(), norms[-1:].double(), logits[-1:].double())
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
