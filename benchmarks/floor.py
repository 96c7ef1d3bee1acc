"""Where the time of a small model's step goes, beside a plain PyTorch loop over the same model and batch.

The plain loop is what one writes without MegaSLM: rows as one document each, all logits, cross-entropy, AdamW.
Trunk, head, optimiser and loader are measured alone, without an engine. DeepSpeed's share is what its engine takes
beyond them, Python's what the whole step takes beyond the engine.
"""

import tempfile
from collections.abc import Callable
from decimal import Decimal
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from harness.report import Bar, options, report
from harness.steps import EOS_ID, Steps, frequent_and_rare, shape_of, undivided_lm, with_batch
from harness.timing import in_turns
from torch import Tensor, nn

from megaslm.config.load import load
from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.dataset.index import merge_index
from megaslm.dataset.shards import RowFormat, part_writer
from megaslm.engine.distributed import join_world, leave_world
from megaslm.engine.zero import ZeroEngine
from megaslm.model.selective_lm import CausalLM, SelectiveLM
from megaslm.slm.choice import Every
from megaslm.slm.objective import CausalObjective, SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.stream.loader import TrainingStream
from megaslm.stream.mixture import MixtureStream

ROOT = Path(__file__).parents[1]
MICRO_STEPS = 2
PLAIN, CLM, EXACT, ENGINE = "a plain loop", "CLM", "SLM exact", "CLM, engine alone"


def plain_step(lm: CausalLM, optimizer: torch.optim.Optimizer, batch: list[Tensor]) -> None:
    loss = torch.zeros(())
    for tokens in batch:
        logits = lm(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / len(batch)
        loss.backward()
    loss.item()
    update(lm, optimizer)


def update(lm: CausalLM, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def plain_trunk(lm: CausalLM, batch: list[Tensor]) -> None:
    for tokens in batch:
        hidden = lm.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        hidden.backward(hidden.detach())


def trunk(model: SelectiveLM, batch: list[Tensor]) -> None:
    for tokens in batch:
        hidden, _ = model._hidden_states(tokens)
        hidden.backward(hidden.detach())


def head(model: SelectiveLM, hidden: list[Tensor], batch: list[Tensor]) -> None:
    for states, tokens in zip(hidden, batch, strict=True):
        targets = tokens[:, 1:].flatten()
        model.lm.lm_head(states.detach().requires_grad_(), targets, every(targets)).total.backward()


def engine_step(engine: ZeroEngine, batch: list[Tensor]) -> None:
    for tokens in batch:
        engine.backward(engine.forward(tokens, every(tokens[:, 1:].flatten())).total)
        engine.step(1e-6)


def every(targets: Tensor) -> Every:
    return Every(torch.ones_like(targets, dtype=torch.bool))


def reading(folder: Path, batch: list[Tensor], plan: BatchPlan) -> Callable[[], object]:
    """Reads a step's micro-batches from shards."""
    rows = torch.cat(batch)
    with part_writer(folder / "part-00000", RowFormat(rows.shape[1] - 1, int(rows.max()) + 1)) as writer:
        writer.write(rows.numpy().astype("uint16"), 0)
    merge_index(folder, [writer.part])
    stream = MixtureStream(folder, remote=None, rows=len(rows), domain=0, proportion=None)
    source = TrainingStream([stream], plan, shuffle_seed=1, workers=0).micro_batches(0)
    return lambda: list(islice(source, plan.micro_steps))


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    world = join_world()
    base = load(RunConfig, ROOT / "configs" / "demo" / "base.yaml").value
    config = with_batch(base, 4 if chosen.quick else 32, MICRO_STEPS)
    # Both before the engine announces itself: later models are divided.
    plain, ours = (
        undivided_lm(config).train(),
        SelectiveLM(undivided_lm(config).train(), eos_id=EOS_ID, document_isolation=True),
    )
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-6)
    steps = Steps(config, world, frequent_and_rare(shape_of(config).vocab_size, world.device))
    micro_batches = [steps.micro_batch() for _ in range(MICRO_STEPS)]
    batch = [micro_batch.tokens for micro_batch in micro_batches]
    hidden = [ours._hidden_states(tokens)[0].detach() for tokens in batch]
    exact = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6"))))
    with tempfile.TemporaryDirectory() as folder:
        times = in_turns(
            {
                PLAIN: lambda: plain_step(plain, optimizer, batch),
                CLM: lambda: steps.step_on(micro_batches, CausalObjective()),
                EXACT: lambda: steps.step_on(micro_batches, exact),
                ENGINE: lambda: engine_step(steps.engine, batch),
                "plain loop: trunk": lambda: plain_trunk(plain, batch),
                "trunk": lambda: trunk(ours, batch),
                "head": lambda: head(ours, hidden, batch),
                "optimiser": lambda: update(plain, optimizer),
                "loader": reading(Path(folder), batch, steps.plan),
            },
            repetitions=3 if chosen.quick else 15,
        )
    seconds = {name: taken.median for name, taken in times.items()}
    alone = ("trunk", "head", "optimiser", "loader")
    seconds["DeepSpeed"] = seconds[ENGINE] - seconds["trunk"] - seconds["head"] - seconds["optimiser"]
    seconds["Python"] = seconds[CLM] - seconds[ENGINE]
    shares = (PLAIN, "plain loop: trunk", CLM, EXACT, *alone, "DeepSpeed", "Python")
    report(
        f"Where does the time of a step go? The demo's model (1.26M parameters), {MICRO_STEPS} micro-steps of "
        f"{config.train.micro_batch_rows} rows of 128, one CPU thread, one rank of ZeRO-3, processor time",
        [
            {
                "step or part": name,
                "seconds": seconds[name],
                "to the plain loop": times[name].over(times[PLAIN])
                if name in times
                else seconds[name] / seconds[PLAIN],
                "share of CLM": seconds[name] / seconds[CLM],
            }
            for name in shares
        ],
        [
            Bar("CLM to the plain loop", times[CLM].over(times[PLAIN]), 0.92),
            Bar("SLM exact to the plain loop", times[EXACT].over(times[PLAIN]), 0.85),
        ],
        chosen,
    )
    leave_world()


if __name__ == "__main__":
    main()
