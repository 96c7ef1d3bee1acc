"""The selective head on a GPU, in bf16, against exact heads of others; without a GPU only --quick runs, on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import cast

import torch
import torch.nn.functional as F
from harness.gpu import DEVICE, clock, peak_gib
from harness.report import Bar, options, report
from harness.timing import in_turns
from torch import Tensor

from megaslm.slm.choice import ByLoss, Selected, no_threshold
from megaslm.slm.measure import measure as measure_losses
from megaslm.slm.token_loss import HeadMethod, cache_bytes, selective_loss

KEEP_RATIO = 0.6
OURS = "ours"


@dataclass(frozen=True)
class Size:
    rows: int
    width: int
    vocab_size: int


SIZES = (Size(16_384, 4096, 32_000), Size(16_384, 4096, 128_256))
QUICK = (Size(256, 64, 1000),)


@dataclass(frozen=True)
class Forecast:
    cut: Tensor
    share: float = KEEP_RATIO

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        return losses - self.cut


class TopByLoss:
    """The rows whose loss is at or above a quantile; the choice of every head here."""

    by_entropy = False
    weights = None

    def __init__(self, forecast: Forecast | None) -> None:
        self.forecast = forecast

    def __call__(self, losses: Tensor) -> Selected:
        bad = ~torch.isfinite(losses)
        return Selected(losses >= kept_above(losses), no_threshold(losses.device), bad, bad.sum())

    def unsortable(self, losses: Tensor) -> Tensor:
        return ~torch.isfinite(losses)


def kept_above(losses: Tensor) -> Tensor:
    return (
        losses.to(torch.promote_types(losses.dtype, torch.float32))
        .kthvalue(len(losses) - round(KEEP_RATIO * len(losses)) + 1)
        .values
    )


class Head:
    """One head with its inputs. Peers give all losses; the masked mean of them is taken back through them."""

    def __init__(self, size: Size, seed: int = 0) -> None:
        generator = torch.Generator(DEVICE).manual_seed(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE).to(torch.bfloat16)

        self.size = size
        self.hidden = drawn(size.rows, size.width)
        self.weight = drawn(size.vocab_size, size.width) * size.width**-0.5
        self.targets = torch.randint(0, size.vocab_size, (size.rows,), generator=generator, device=DEVICE)
        self.row_weight = torch.ones(size.rows, device=DEVICE)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()

    def ours(self, method: HeadMethod, forecast: Forecast | None = None) -> None:
        # The head asks for no more of a choice.
        select = cast(ByLoss, TopByLoss(forecast))
        found = selective_loss(*self.leaves(), self.targets, self.row_weight, select, method=method)
        (found.total / found.mask.sum()).backward()

    def peer(self, losses_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        losses = losses_of(*self.leaves(), self.targets)
        mask = losses.detach() >= kept_above(losses.detach())
        ((losses * mask).sum() / mask.sum()).backward()


def naive_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(
        (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32)), targets, reduction="none"
    )


def peers() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Exact heads of others that are installed here."""
    # Compiling for a CPU would need a compiler, and tell nothing here.
    compiled = torch.compile(naive_losses) if DEVICE.type == "cuda" else naive_losses
    found: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"compiled CE": compiled}
    if find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["Liger FLCE"] = lambda hidden, weight, targets: liger_fused_linear_cross_entropy(
            hidden, weight, targets, reduction="none"
        )
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["CCE"] = lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets, reduction="none")
    return found


def loss_errors(head: Head) -> dict[str, float]:
    """The largest error of each head's losses against float64, in nats."""
    with torch.no_grad():
        exact = losses_in_chunks(head, torch.float64)
        found = {name: losses_of(head.hidden, head.weight, head.targets) for name, losses_of in peers().items()}
        found[OURS] = measure_losses(head.hidden, head.weight, head.targets).losses
    return {name: float((losses - exact).abs().max()) for name, losses in found.items()}


def measure(size: Size, *, quick: bool) -> tuple[list[dict[str, str | float]], list[Bar]]:
    head = Head(size)
    # From another batch of the same distribution, as a running threshold has it.
    forecast = Forecast(kept_above(losses_in_chunks(Head(size, seed=1))))
    ours: dict[str, Callable[[], None]] = {
        "cache": lambda: head.ours("cache"),
        "bracket": lambda: head.ours("bracket", forecast),
        "recompute": lambda: head.ours("recompute"),
    }
    errors = loss_errors(head)
    theirs: dict[str, Callable[[], None]] = {name: partial(head.peer, losses) for name, losses in peers().items()}
    times = in_turns(ours | theirs, repetitions=3 if quick else 15, clock=clock)
    peaks = {name: peak_gib(run) for name, run in (ours | theirs).items()}
    best_peer = min((times[name] for name in theirs), key=lambda taken: taken.median)
    best = min((times["cache"], times["bracket"]), key=lambda taken: taken.median)
    rows: list[dict[str, str | float]] = [
        {
            "head": f"{name}, V={size.vocab_size}",
            "ms": 1000 * taken.median,
            "to best peer": taken.over(best_peer),
            "from – to": taken.spread(best_peer),
            "peak GiB": peaks[name],
            "loss error, nats": errors.get(name, errors[OURS]),
        }
        for name, taken in times.items()
    ]
    bars = [
        Bar(f"V={size.vocab_size}: better of cache and bracket, to {name}", best.over(times[name]), 0.75)
        for name in theirs
    ]
    if DEVICE.type == "cuda":
        budget_gib = cache_bytes(size.rows, size.vocab_size) / (1 << 30)
        bars.append(
            Bar(f"V={size.vocab_size}: peak of bracket, to T×V logits", peaks["bracket"] / (2 * budget_gib), 1.0)
        )
        beyond = (peaks["cache"] - peaks["bracket"]) / budget_gib
        bars.append(Bar(f"V={size.vocab_size}: peak of cache beyond bracket's, to 2·T·V bytes", beyond, 1.05))
    return rows, bars


def main() -> None:
    chosen = options(__doc__)
    rows: list[dict[str, str | float]] = []
    bars: list[Bar] = []
    if DEVICE.type != "cuda" and not chosen.quick:
        report(
            "How long does the selective head take on a GPU? Not measured: this machine has none", rows, bars, chosen
        )
        return
    for size in QUICK if chosen.quick else SIZES:
        more_rows, more_bars = measure(size, quick=chosen.quick)
        rows += more_rows
        bars += more_bars
    report(
        f"How long does the selective head take on a {'GPU' if DEVICE.type == 'cuda' else 'CPU'}, and how much memory? "
        f"bf16, k={KEEP_RATIO}, forward and backward",
        rows,
        bars,
        chosen,
    )


def losses_in_chunks(head: Head, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    parts = zip(head.hidden.split(1024), head.targets.split(1024), strict=True)
    weight = head.weight.to(dtype)
    return torch.cat([naive_losses(hidden.to(dtype), weight, targets) for hidden, targets in parts])


if __name__ == "__main__":
    main()
