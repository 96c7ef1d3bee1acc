"""The selective head on a CPU: time and memory against what one would write without it."""

import time
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from harness.memory import peak_bytes
from harness.report import Bar, options, report
from harness.timing import in_turns
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megaslm.slm.choice import ByLoss, Selected, no_threshold
from megaslm.slm.token_loss import HeadMethod, selective_loss, weighted_loss

KEEP_RATIO = 0.6
CHECKPOINTED_CHUNKS = 8


@dataclass(frozen=True)
class Size:
    rows: int
    width: int
    vocab_size: int
    seed: int = 0


FULL = Size(4096, 512, 32_000)
QUICK = Size(512, 128, 8_000)


@dataclass(frozen=True)
class Forecast:
    """What a run knows before its step: the share it keeps and the cut of another step of the same distribution."""

    ref_loss: Tensor
    cut: Tensor
    share: float = KEEP_RATIO

    def margin(self, losses: Tensor, rows: Tensor) -> Tensor:
        return losses - self.ref_loss[rows] - self.cut


class TopByExcess:
    """The K rows of largest excess loss; the choice of naive code and of ours."""

    by_entropy = False
    weights = None

    def __init__(self, ref_loss: Tensor, forecast: Forecast | None) -> None:
        self.ref_loss = ref_loss
        self.forecast = forecast

    def __call__(self, losses: Tensor) -> Selected:
        values = losses - self.ref_loss
        bad = ~torch.isfinite(values)
        return Selected(values >= kept_above(values), no_threshold(losses.device), bad, bad.sum())

    def unsortable(self, losses: Tensor) -> Tensor:
        return ~torch.isfinite(losses - self.ref_loss)


def kept_above(values: Tensor) -> Tensor:
    keep = round(KEEP_RATIO * len(values))
    return values.kthvalue(len(values) - keep + 1).values


class Head:
    """One head with its inputs, and every way to its gradient. Losses have a standard deviation of about one nat."""

    def __init__(self, size: Size) -> None:
        generator = torch.Generator().manual_seed(size.seed)
        self.size = size
        self.hidden = torch.randn(size.rows, size.width, generator=generator)
        self.weight = torch.randn(size.vocab_size, size.width, generator=generator) * size.width**-0.5
        self.targets = torch.randint(0, size.vocab_size, (size.rows,), generator=generator)
        self.ref_loss = 10.0 + 1.5 * torch.randn(size.rows, generator=generator)
        self.row_weight = torch.ones(size.rows)

    def forecast(self) -> Forecast:
        """From another batch of the same distribution, as a running threshold has it."""
        before = Head(Size(self.size.rows, self.size.width, self.size.vocab_size, self.size.seed + 1))
        losses = torch.cat(
            [
                F.cross_entropy(hidden @ before.weight.t(), targets, reduction="none")
                for hidden, targets in zip(before.hidden.split(256), before.targets.split(256), strict=True)
            ]
        )
        return Forecast(self.ref_loss, kept_above(losses - before.ref_loss))

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()

    def masked_mean(self, losses: Tensor) -> Tensor:
        values = losses.detach() - self.ref_loss
        mask = values >= kept_above(values)
        return (losses * mask).sum() / mask.sum()

    def naive(self) -> None:
        hidden, weight = self.leaves()
        self.masked_mean(F.cross_entropy(hidden @ weight.t(), self.targets, reduction="none")).backward()

    def checkpointed(self) -> None:
        hidden, weight = self.leaves()

        def chunk(hidden: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(hidden @ weight.t(), targets, reduction="none")

        rows = self.size.rows // CHECKPOINTED_CHUNKS
        parts = zip(hidden.split(rows), self.targets.split(rows), strict=True)
        losses = [checkpoint(chunk, *part, use_reentrant=False) for part in parts]
        self.masked_mean(torch.cat(losses)).backward()

    def torch_unreduced(self) -> None:
        hidden, weight = self.leaves()
        self.masked_mean(F.linear_cross_entropy(hidden, weight, self.targets, reduction="none")).backward()

    def ours(self, method: HeadMethod, forecast: Forecast | None = None) -> None:
        hidden, weight = self.leaves()
        # The head asks for no more of a choice.
        select = cast(ByLoss, TopByExcess(self.ref_loss, forecast))
        found = selective_loss(hidden, weight, self.targets, self.row_weight, select, method=method)
        (found.total / found.mask.sum()).backward()

    def naive_causal(self) -> None:
        hidden, weight = self.leaves()
        F.cross_entropy(hidden @ weight.t(), self.targets).backward()

    def torch_causal(self) -> None:
        hidden, weight = self.leaves()
        F.linear_cross_entropy(hidden, weight, self.targets).backward()

    def our_causal(self) -> None:
        hidden, weight = self.leaves()
        total, *_ = weighted_loss(hidden, weight, self.targets, self.row_weight)
        (total / self.size.rows).backward()


def memory_task(name: str) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    head = Head(FULL)
    forecast = Forecast(head.ref_loss, torch.tensor(0.5))
    run = {
        "nothing": lambda: None,
        "naive": head.naive,
        "bracket": lambda: head.ours("bracket", forecast),
        "cache": lambda: head.ours("cache"),
    }
    run[name]()


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    size = QUICK if chosen.quick else FULL
    head = Head(size)
    forecast = head.forecast()
    times = in_turns(
        {
            "naive logits, masked CE": head.naive,
            f"{CHECKPOINTED_CHUNKS} checkpointed chunks": head.checkpointed,
            "F.linear_cross_entropy(none)": head.torch_unreduced,
            "recompute": lambda: head.ours("recompute"),
            "cache": lambda: head.ours("cache"),
            "bracket": lambda: head.ours("bracket", forecast),
            "causal: naive": head.naive_causal,
            "causal: F.linear_cross_entropy": head.torch_causal,
            "causal: ours, k = 1": head.our_causal,
        },
        repetitions=3 if chosen.quick else 7,
        clock=time.process_time,
    )
    naive = times["naive logits, masked CE"]
    rows = [
        {"head": name, "seconds": taken.median, "to naive": taken.over(naive), "from – to": taken.spread(naive)}
        for name, taken in times.items()
    ]
    ours = min((times["cache"], times["bracket"]), key=lambda taken: taken.median)
    causal = min((times["causal: naive"], times["causal: F.linear_cross_entropy"]), key=lambda taken: taken.median)
    bars = [
        Bar("time of the better of cache and bracket, to naive", ours.over(naive), 0.75),
        Bar("… to checkpointed chunks", ours.over(times[f"{CHECKPOINTED_CHUNKS} checkpointed chunks"]), 0.60),
        Bar("… to F.linear_cross_entropy(none)", ours.over(times["F.linear_cross_entropy(none)"]), 0.65),
        Bar("k = 1, time to the better causal head", times["causal: ours, k = 1"].over(causal), 1.05),
    ]
    memory = {name: peak_bytes(memory_task, name) for name in (() if chosen.quick else ("naive", "bracket", "cache"))}
    for name, found in memory.items():
        rows.append(
            {
                "head": f"{name}: MB of peak memory",
                "seconds": found / 1e6,
                "to naive": found / memory["naive"],
                "from – to": "",
            }
        )
    if memory:
        bars.append(Bar("peak memory of bracket, to naive", memory["bracket"] / memory["naive"], 0.12))
    report(
        f"How long does the selective head take on one CPU thread, and how much memory? T={size.rows}, D={size.width}, "
        f"V={size.vocab_size}, k={KEEP_RATIO}, fp32, forward and backward, processor time",
        rows,
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
