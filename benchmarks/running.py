"""What share of the targets a running threshold selects: real excess losses, replayed through it and its predecessor.

Small models are trained on the demo's corpus with exact selection, and the excess losses of every step are kept. Then
each threshold selects from them at several keep ratios.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory

import torch
from harness.references import Whole
from harness.report import Bar, options, report
from torch import Tensor

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.preparing.prepare import prepare
from megaslm.slm.choice import HeadOutput, no_threshold
from megaslm.slm.keys import target_keys
from megaslm.slm.measure import Measured
from megaslm.slm.objective import CausalObjective, Objective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.slm.targets import Targets
from megaslm.slm.topk import on_this_rank_alone
from megaslm.slm.valid_targets import valid_targets

ROOT = Path(__file__).parents[1]
KEEP_RATIOS = ("0.4", "0.6", "0.7", "0.8")
FIRST_STEPS = 12
ROW_LENGTH = 128


@dataclass(frozen=True)
class Training:
    """A training with exact selection. `base_steps`: steps of causal LM before it, on the same corpus."""

    name: str
    rows: int
    steps: int
    learning_rate: float
    warmup_steps: int
    keep_ratio: str = "0.6"
    base_steps: int = 0


TRAININGS = (
    Training("random weights, 4,096 targets per step", 32, 100, 3e-3, warmup_steps=4),
    Training("continued from causal LM, 4,096 per step", 32, 100, 2e-3, warmup_steps=4, base_steps=50),
    Training("random weights, 16,384 per step", 128, 30, 3e-3, warmup_steps=8, keep_ratio="0.7"),
)
QUICK = (Training("continued from causal LM, 1,024 per step", 8, 15, 1e-3, warmup_steps=4, base_steps=15),)


class Corpus:
    """The demo's dataset, and models of the demo's shape that read it."""

    def __init__(self, folder: Path) -> None:
        recipe = load(Recipe, ROOT / "data" / "demo.yaml").value
        prepare(recipe, folder / "tokens", workers=1)
        self._dataset = folder / "tokens"
        self._eos_id = read_manifest(self._dataset).eos_id

    def model(self, seed: int) -> SelectiveLM:
        shape = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value.model.from_scratch
        assert shape is not None
        lm = build_from_shape(shape, eos_id=self._eos_id, dtype=torch.float32)
        draw_weights(lm, seed=seed, standard_deviation=shape.initializer_range, sharding=Whole())
        return SelectiveLM(lm.train(), eos_id=self._eos_id, document_isolation=True)

    def steps(self, domain: str, rows: int, seed: int) -> Iterator[Tensor]:
        """Tokens of each step, (rows, L+1) int64, in an order drawn anew for each pass."""
        reader = RowReader(self._dataset, "train", domain)
        tokens = torch.from_numpy(reader.rows(0, len(reader))["tokens"].astype("int64"))
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(tokens), generator=generator).split(rows):
                if len(chosen) == rows:
                    yield tokens[chosen]

    def targets(self, tokens: Tensor, ref_loss: Tensor | None = None) -> Targets:
        keys = target_keys(torch.arange(len(tokens)), 0, tokens.shape[1] - 1)
        return Targets(valid_targets(tokens, self._eos_id), keys, {} if ref_loss is None else {"ref_loss": ref_loss})


def train(
    model: SelectiveLM, objective: Objective, steps: Iterator[tuple[Tensor, Targets]], rate_at: Callable[[int], float]
) -> Iterator[Tensor]:
    """Makes the steps with AdamW; gives the losses of each, (B, L)."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step, (tokens, targets) in enumerate(steps, start=1):
        plan = objective.plan_step(
            targets, 1, Moment(step, 0), lambda number: Measured(torch.empty(0)), on_this_rank_alone
        )
        output = model(tokens, plan.choices[0])
        assert plan.denominator is not None, "k is known before the step"
        (output.total / plan.denominator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        objective.end_step(plan, output._replace(total=output.total.detach()))
        yield output.losses


def train_causal(corpus: Corpus, model: SelectiveLM, domain: str, steps: int) -> None:
    """So many steps of causal LM at a rate that falls to a tenth."""
    batches = islice(corpus.steps(domain, 32, seed=1), steps)
    for _ in train(
        model,
        CausalObjective(),
        ((tokens, corpus.targets(tokens)) for tokens in batches),
        lambda step: 3e-3 * (1 - 0.9 * step / steps),
    ):
        pass


def record(corpus: Corpus, training: Training, reference: SelectiveLM) -> list[Tensor]:
    """The excess losses of the valid targets of each step."""
    model = corpus.model(seed=0)
    train_causal(corpus, model, "source", training.base_steps)
    batches = [
        tokens for _, tokens in zip(range(training.steps), corpus.steps("source", training.rows, 2), strict=False)
    ]
    targets = [corpus.targets(tokens, reference.measure(tokens).losses.clone()) for tokens in batches]
    losses = train(
        model,
        SelectiveObjective(SelectionRule(KeepRatio(Decimal(training.keep_ratio)))),
        zip(batches, targets, strict=True),
        lambda step: training.learning_rate * min(step / training.warmup_steps, 1.0),
    )
    return [(found - part.column("ref_loss"))[part.valid] for found, part in zip(losses, targets, strict=True)]


def running(steps: list[Tensor], keep_ratio: str) -> list[float]:
    """The ratio that `slm.mode: running` selects in each step."""
    rule = SelectionRule(KeepRatio(Decimal(keep_ratio)), criterion="loss", mode="running")
    objective, ratios = SelectiveObjective(rule), []
    for step, values in enumerate(steps, start=1):
        targets = Targets(
            torch.ones(1, len(values), dtype=torch.bool), target_keys(torch.tensor([step]), 0, len(values))
        )
        plan = objective.plan_step(
            targets, 1, Moment(step, 0), lambda number: Measured(torch.empty(0)), on_this_rank_alone
        )
        choice = plan.choices[0]
        mask = choice(values).mask  # type: ignore[operator]
        output = HeadOutput(values[mask].sum(), values[None], mask[None], no_threshold(values.device))
        objective.end_step(plan, output)
        ratios.append(float(mask.double().mean()))
    return ratios


def median_of_three(steps: list[Tensor], keep_ratio: str) -> list[float]:
    """The threshold of before: the median of the last three, a tenth of the surplus taken back per step."""
    thresholds: list[float] = []
    ratios: list[float] = []
    surplus = 0.0
    for values in steps:
        ordered = values.sort(descending=True).values
        count = round(float(keep_ratio) * len(values))
        wanted = count
        selected = int((values >= median_low(thresholds[-3:])).sum()) if thresholds else count
        if thresholds:
            surplus = max(-1.0, min(surplus + (selected - count) / count, 1.0))
            wanted = min(count - round(surplus * count / 10), len(values))
        thresholds.append(float(ordered[wanted - 1]))
        ratios.append(selected / len(values))
    return ratios


def row_of(name: str, selected_by: str, keep_ratio: str, ratios: list[float]) -> dict[str, str | float]:
    off = [100 * (ratio - float(keep_ratio)) for ratio in ratios]
    return {
        "training": name,
        "k": keep_ratio,
        "threshold": selected_by,
        f"mean of {FIRST_STEPS}": sum(off[:FIRST_STEPS]) / FIRST_STEPS,
        "mean of all": sum(off) / len(off),
        "worst step": max(off, key=abs),
        "root mean square": (sum(value**2 for value in off) / len(off)) ** 0.5,
    }


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder))
        reference = corpus.model(seed=1)
        train_causal(corpus, reference, "docs", 20 if chosen.quick else 80)
        recorded = {
            training.name: record(corpus, training, reference) for training in (QUICK if chosen.quick else TRAININGS)
        }
    rows = [
        row_of(name, selected_by, keep_ratio, select(steps, keep_ratio))
        for name, steps in recorded.items()
        for keep_ratio in KEEP_RATIOS
        for selected_by, select in (("median of three", median_of_three), ("running", running))
    ]
    ours = [row for row in rows if row["threshold"] == "running"]
    report(
        "How far is the ratio of selected targets from k, in percentage points? Excess losses of small trainings on "
        "the demo's corpus, replayed",
        rows,
        [
            Bar(f"mean of the first {FIRST_STEPS} steps", _largest(ours, f"mean of {FIRST_STEPS}"), 1.0),
            Bar("mean of all steps", _largest(ours, "mean of all"), 0.3),
        ],
        chosen,
    )


def _largest(rows: list[dict[str, str | float]], column: str) -> float:
    return max(abs(float(row[column])) for row in rows)


if __name__ == "__main__":
    main()
