from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megaslm.slm.exponentials import _fused, exponentials, exponentials_and_entropy, torch_exponentials

ROWS, VOCAB = 7, 333
INF, NAN = float("inf"), float("nan")


def inputs(vocab: int = VOCAB, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = scale * torch.randn(ROWS, vocab, generator=generator)
    return logits, torch.randint(0, vocab, (ROWS,), generator=generator)


def exact(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, norms and exponentials in float64."""
    wide = logits.double()
    weights = (wide - wide.amax(1, keepdim=True)).exp()
    return F.cross_entropy(wide, targets, reduction="none"), weights.sum(1), weights


def compare(logits: Tensor, targets: Tensor, out: Tensor, rtol: float = 1e-6) -> None:
    expected_losses, expected_norms, expected = exact(logits, targets)
    losses, norms = exponentials(logits, targets, out)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms.double(), expected_norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("vocab", [1, 2, 333, 4097])
def test_losses_norms_and_exponentials_are_those_of_float64(vocab: int) -> None:
    logits, targets = inputs(vocab)
    compare(logits, targets, torch.empty_like(logits))


def test_in_place() -> None:
    logits, targets = inputs()
    expected_losses, expected_norms, expected = exact(logits, targets)
    losses, norms = exponentials(logits, targets, logits)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms.double(), expected_norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-12)


def test_rows_of_a_bfloat16_cache_and_norms_from_before_the_rounding() -> None:
    logits, targets = inputs()
    cache = torch.full((3 * ROWS, VOCAB), -1.0, dtype=torch.bfloat16)
    compare(logits, targets, cache[ROWS : 2 * ROWS], rtol=2**-8)
    assert (cache[:ROWS] == -1).all()
    assert (cache[2 * ROWS :] == -1).all()


def test_large_logits_lose_nothing() -> None:
    logits, targets = inputs()
    compare(logits + 1e4, targets, torch.empty_like(logits))
    logits, targets = inputs(scale=1e4)
    compare(logits, targets, torch.empty_like(logits))


def test_one_logit_over_all_others() -> None:
    logits, targets = inputs()
    logits[torch.arange(ROWS), targets] = 200.0
    losses, norms = exponentials(logits, targets, logits)
    assert (losses == 0).all()
    assert (norms == 1).all()


def test_minus_infinity_is_a_probability_of_zero() -> None:
    logits, targets = inputs()
    logits[:, ::2] = -INF
    targets = targets // 2 * 2
    targets[:-1] += 1
    out = torch.empty_like(logits)
    losses, norms = exponentials(logits.clone(), targets, out)
    expected_losses, expected_norms, expected = exact(logits, targets)
    assert expected_losses[-1] == INF
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms.double(), expected_norms, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-12)


def broken_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets whose rows 1, 3 and 5 have no distribution, and the mask of these rows."""
    logits, targets = inputs()
    logits[1, 5] = NAN
    logits[3, 5] = INF
    logits[5] = -INF
    broken = torch.zeros(ROWS, dtype=torch.bool)
    broken[1::2] = True
    return logits, targets, broken


def test_a_broken_row_gives_nan_and_leaves_the_others() -> None:
    logits, targets, broken = broken_rows()
    expected_losses, _, expected = exact(logits, targets)
    losses, norms = exponentials(logits, targets, logits)
    assert losses.isnan().equal(broken)
    assert norms.isnan().equal(broken)
    torch.testing.assert_close(losses[~broken].double(), expected_losses[~broken], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[~broken].double(), expected[~broken], rtol=1e-6, atol=1e-12)


def test_float64_stays_float64() -> None:
    logits, targets = inputs()
    wide = logits.double() + 1e-12
    expected_losses, expected_norms, expected = exact(wide, targets)
    losses, norms = exponentials(wide, targets, wide)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(norms, expected_norms, rtol=1e-14, atol=0)
    torch.testing.assert_close(wide, expected, rtol=1e-14, atol=0)
    losses, entropies = exponentials_and_entropy(inputs()[0].double(), targets)
    assert losses.dtype == entropies.dtype == torch.float64


@pytest.mark.parametrize("scale", [0.0, 1e-3, 3.0, 30.0])
def test_entropy_is_that_of_float64(scale: float) -> None:
    logits, targets = inputs(scale=scale)
    expected = torch.special.entr(logits.double().softmax(1)).sum(1)
    expected_losses = exact(logits, targets)[0]
    losses, entropies = exponentials_and_entropy(logits, targets)
    assert losses.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(entropies.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("others", [-200.0, -1e30, -INF])
def test_the_entropy_of_one_possible_token_is_zero(others: float) -> None:
    logits = torch.full((2, VOCAB), others)
    logits[:, 7] = 100.0
    losses, entropies = exponentials_and_entropy(logits, torch.tensor([7, 7]))
    assert losses.tolist() == entropies.tolist() == [0.0, 0.0]


def test_the_entropy_of_a_broken_row_is_nan() -> None:
    logits, targets, broken = broken_rows()
    losses, entropies = exponentials_and_entropy(logits, targets)
    assert losses.isnan().equal(broken)
    assert entropies.isnan().equal(broken)


def compare_fused_with_torch(device: str) -> None:
    """The kernel against torch on a device, over vocabularies of one block and of several that they do not fill."""
    from megaslm.slm.triton_exponentials import _BLOCK_COLUMNS, fused_exponentials

    assert _fused() is fused_exponentials
    for vocab in (1, 333, _BLOCK_COLUMNS, 2 * _BLOCK_COLUMNS + 333):
        for name, (logits, targets) in fused_cases(vocab, _BLOCK_COLUMNS).items():
            for dtype in (torch.float32, torch.bfloat16):
                case = f"{name}, {vocab} columns, {dtype}"
                _compare_one(fused_exponentials, logits.to(device), targets.to(device), dtype, case)

    logits, targets = inputs()
    targets[0], targets[1] = VOCAB, -1
    losses, _ = fused_exponentials(logits.to(device), targets.to(device), torch.empty_like(logits, device=device))
    assert losses.isnan().tolist() == [True, True] + [False] * (ROWS - 2)
    with pytest.raises(ValueError, match=r"7.* 1\b"):
        fused_exponentials(torch.empty(VOCAB, ROWS).t(), targets, torch.empty(ROWS, VOCAB))


def fused_cases(vocab: int, block: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and targets by what is particular about them."""
    cases = {"ordinary": inputs(vocab), "large": inputs(vocab, 1e4), "shifted": inputs(vocab)}
    cases["shifted"][0].add_(1e4)
    for name in ("dominated", "first block without a token", "last block without a token", "one NaN", "a broken row"):
        cases[name] = inputs(vocab)
    logits, targets = cases["dominated"]
    logits[torch.arange(ROWS), targets] = 200.0
    cases["first block without a token"][0][:, : min(block, vocab - 1)] = -INF
    cases["last block without a token"][0][:, max(1, vocab - block) :] = -INF
    for row in range(ROWS):
        cases["one NaN"][0][row, row * (vocab - 1) // (ROWS - 1)] = NAN
    logits, _ = cases["a broken row"]
    logits[0], logits[2], logits[4, 0], logits[5, -1] = NAN, -INF, INF, INF
    logits[6], logits[6, -1] = -INF, NAN
    return cases


def _compare_one(fused: object, logits: Tensor, targets: Tensor, dtype: torch.dtype, case: str) -> None:
    assert callable(fused)
    # Rows of a wider tensor, and targets of every second place: strides that are not those of a tensor on its own.
    wide = torch.full((ROWS, logits.shape[1] + 5), 7.0, device=logits.device)
    wide[:, :-5] = logits
    targets = targets.repeat_interleave(2)[::2]
    out = wide[:, :-5] if dtype == torch.float32 else torch.empty_like(logits, dtype=dtype)
    losses, norms = fused(wide[:, :-5], targets, out)

    expected_out = torch.empty_like(logits, dtype=dtype)
    expected_losses, expected_norms = torch_exponentials(logits.clone(), targets, expected_out)
    defined = ~expected_norms.isnan()
    # A GPU rounds to the nearest bfloat16, the interpreter towards zero.
    rounding = 2e-6 if dtype == torch.float32 else 2**-7
    for what, found, expected, rtol in (
        ("losses", losses, expected_losses, 2e-6),
        ("norms", norms, expected_norms, 2e-6),
        ("exponentials", out[defined], expected_out[defined], rounding),
    ):
        torch.testing.assert_close(
            found,
            expected,
            rtol=rtol,
            atol=1e-6,
            equal_nan=True,
            msg=lambda text, what=what: f"{what} of {case}: {text}",
        )
    assert (wide[:, -5:] == 7).all(), f"{case}: wrote beyond a row"


@pytest.mark.parametrize("out", ["*fp32", "*bf16"])
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here (the extra `gpu` brings it)")
def test_the_kernel_compiles_for_a_gpu_without_one(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter runs any Python; the compiler takes less of it.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from megaslm.slm.triton_exponentials import _BLOCK_COLUMNS, _WARPS, _exponentials_of_a_row

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = ["*fp32", "*i64", out, "*fp32", "*fp32", "i32", "i32", "i32", "constexpr"]
    signature = dict(zip(_exponentials_of_a_row.arg_names, types, strict=True))
    source = ASTSource(_exponentials_of_a_row, signature, {"BLOCK_COLUMNS": _BLOCK_COLUMNS})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": _WARPS})
    assert compiled.asm["cubin"]


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed here")
def test_without_triton_there_is_no_kernel() -> None:
    assert _fused() is None
