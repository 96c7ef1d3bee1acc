"""On a GPU the head makes the host wait once, after a choice that depends on the losses, and never otherwise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megaslm.slm import head_pass, token_loss
from megaslm.slm.choice import Selected, TopOfGroups, forecast_from
from megaslm.slm.criterion import Candidates, formula_of
from megaslm.slm.keys import HASH_BITS
from megaslm.slm.measure import Measure, measure
from megaslm.slm.targets import Targets
from megaslm.slm.threshold import RecentThresholds
from megaslm.slm.token_loss import (
    HeadMethod,
    selective_loss,
    weighted_loss,
)
from megaslm.slm.topk import Quota, on_this_rank_alone, ordered_image
from tests.waits import when_the_host_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

ROWS, WIDTH, VOCAB = 1000, 64, 512
CHUNK_ROWS = 200
KEPT_ROWS = 600
METHODS: list[HeadMethod] = ["cache", "bracket", "recompute"]
LOGIT_SCALES = [1.0, 2.0]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_pass, "_LOGIT_BYTES_ON_GPU", 1)
    monkeypatch.setattr(head_pass, "_FEWEST_ROWS_ON_GPU", CHUNK_ROWS)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the head's weight and targets."""
    generator = torch.Generator("cuda").manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, device="cuda") / WIDTH**0.5
    weight = torch.randn(VOCAB, WIDTH, generator=generator, device="cuda").to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator, device="cuda")
    return hidden.to(dtype).requires_grad_(), weight, targets


def top_rows() -> TopOfGroups:
    """The rows of largest loss, forecast from a cut that is near theirs."""
    keys = torch.arange(ROWS, device="cuda")[None]
    targets = Targets(torch.ones_like(keys, dtype=torch.bool), keys)
    candidates = Candidates(targets, targets.valid, formula_of("loss"))
    recent = RecentThresholds()
    recent.add(ordered_image(torch.tensor(6.5, device="cuda")) << HASH_BITS)
    forecast = forecast_from(recent, candidates, KEPT_ROWS / ROWS, surely=False)
    count = torch.tensor([KEPT_ROWS], device="cuda")
    return TopOfGroups(candidates, on_this_rank_alone, forecast, Quota(count), on_this_rank_alone)


def run_twice(run: Callable[[], object]) -> None:
    """Kernels are built and libraries set up in the first run, which may wait; the second may not."""
    run()
    torch.cuda.synchronize()
    with when_the_host_waits("error"):
        run()


def test_a_read_is_an_error() -> None:
    number = torch.ones(1, device="cuda")
    with when_the_host_waits("error"), pytest.raises(RuntimeError, match="synchronizing"):
        number.item()


@pytest.mark.parametrize("logit_scale", LOGIT_SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", [Measure(), Measure(entropies=True), Measure(top_tokens=16)], ids=str)
def test_measuring_never_waits(what: Measure, dtype: torch.dtype, logit_scale: float) -> None:
    hidden, weight, targets = inputs(dtype)
    run_twice(lambda: measure(hidden, weight, targets, what, None, logit_scale))


@pytest.mark.parametrize("logit_scale", LOGIT_SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_on_every_row_never_waits(dtype: torch.dtype, logit_scale: float) -> None:
    hidden, weight, targets = inputs(dtype)
    row_weight = torch.ones(ROWS, device="cuda")

    def run() -> None:
        total, *_ = weighted_loss(hidden, weight, targets, row_weight, None, logit_scale)
        torch.autograd.grad(total, [hidden, weight])

    run_twice(run)


@pytest.mark.parametrize("logit_scale", LOGIT_SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_training_on_chosen_rows_waits_once(
    monkeypatch: pytest.MonkeyPatch, method: HeadMethod, dtype: torch.dtype, logit_scale: float
) -> None:
    hidden, weight, targets = inputs(dtype)
    row_weight = torch.ones(ROWS, device="cuda")
    select = top_rows()
    reads: list[int] = []
    read_rows = token_loss._read_rows

    def counted(selected: Selected, wanted: Tensor) -> Tensor:
        with when_the_host_waits("default"):
            reads.append(1)
            return read_rows(selected, wanted)

    def run() -> None:
        total, *_ = selective_loss(hidden, weight, targets, row_weight, select, method=method, logit_scale=logit_scale)
        torch.autograd.grad(total, [hidden, weight])

    monkeypatch.setattr(token_loss, "_read_rows", counted)
    run_twice(run)
    assert len(reads) == 2
