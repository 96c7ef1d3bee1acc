"""A backward pass that leaves out unselected tokens (`slm.backward: filtered`): what it saves, and how far its gradient
is off."""

import tempfile
import time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bos import BATCH_ROWS, SEQ_LEN, STEPS, VOCAB_SIZE, recipe, write_documentation
from harness.references import llama
from harness.report import Bar, options, report
from harness.steps import Steps, frequent_and_rare
from harness.timing import in_turns
from harness.training import train
from torch import Tensor

from megaslm.config.load import load
from megaslm.config.schema import Recompute, RunConfig
from megaslm.dataset.rows import RowReader
from megaslm.engine.distributed import join_world, leave_world
from megaslm.model.decoder_layers import decoder_layers, prepare_layers
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.preparing.prepare import prepare
from megaslm.slm.choice import Known
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, SelectionRule
from megaslm.slm.valid_targets import valid_targets

ROOT = Path(__file__).parents[1]
KEEP_RATIO = Decimal("0.5")
MOST_STEP, LEAST_COSINE = 0.75, 0.98


def model_of(folder: Path, eos_id: int, filtered: int = 0) -> SelectiveLM:
    """A trained model whose uppermost layers leave tokens out of their backward pass."""
    lm = load_pretrained(folder, dtype=torch.float32).train()
    prepare_layers(lm, recompute="full", compiled=False, filtered=filtered)
    model = SelectiveLM(lm, eos_id=eos_id, document_isolation=True)
    model.backward_filter.leaves_out = filtered > 0
    return model


def gradient_of(model: SelectiveLM, tokens: Tensor, choice: Known) -> Tensor:
    """Of all parameters, by the chosen targets."""
    output: Any = model(tokens, choice)
    output.total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def cosines(folder: Path, *, quick: bool) -> list[dict[str, str | float]]:
    """Of the exact gradient and the filtered one: rows of documentation, chosen by excess over a better model."""
    write_documentation(folder, quick=quick)
    eos_id = prepare(recipe(folder, "none"), folder / "tokens", workers=1).eos_id
    steps = {"student": 2 if quick else STEPS, "reference": 4 if quick else 3 * STEPS}
    folders = {
        name: train(
            folder / name,
            folder / "tokens",
            vocab_size=VOCAB_SIZE,
            seq_len=SEQ_LEN,
            batch_rows=BATCH_ROWS,
            total_tokens=BATCH_ROWS * SEQ_LEN * count,
            seed=seed,
        )
        for seed, (name, count) in enumerate(steps.items())
    }
    read = RowReader(folder / "tokens", "heldout", "docs").rows(0, BATCH_ROWS)["tokens"].astype(np.int64)
    tokens = torch.from_numpy(read)
    valid = valid_targets(tokens, eos_id).flatten()
    losses = {name: model_of(at, eos_id).measure(tokens).losses.flatten() for name, at in folders.items()}
    excess = (losses["student"] - losses["reference"]).where(valid, -torch.inf)
    rows = excess.topk(int(KEEP_RATIO * int(valid.sum()))).indices.sort().values
    mask = torch.zeros_like(valid).index_fill_(0, rows, True)
    choice = Known(mask, rows, rows[:0])
    exact = gradient_of(model_of(folders["student"], eos_id), tokens, choice)
    found: list[dict[str, str | float]] = []
    layers = len(decoder_layers(model_of(folders["student"], eos_id).lm))
    for count in range(1, layers + 1):
        model = model_of(folders["student"], eos_id, filtered=count)
        cosine = torch.cosine_similarity(exact, gradient_of(model, tokens, choice), dim=0)
        found.append({"filtered layers": f"{count} of {layers}", "cosine": float(cosine)})
    return found


def times(*, quick: bool) -> list[dict[str, str | float]]:
    """Of a whole step of exact SLM under ZeRO-3, in units of that with full recomputation."""
    architecture = llama(VOCAB_SIZE, 128, 2) if quick else llama(VOCAB_SIZE, 512, 8)
    rows, length = (2, 64) if quick else (4, 512)
    base = load(RunConfig, ROOT / "configs" / "demo" / "slm.yaml").value.model_dump()
    world = join_world()

    def step_of(recompute: Recompute, share: float | None) -> partial[None]:
        config = RunConfig.model_validate(
            {
                **base,
                "model": {"from_scratch": architecture.model_dump(), "recompute": recompute},
                "data": {**base["data"], "seq_len": length},
                "train": {**base["train"], "global_batch_tokens": rows * length, "micro_batch_rows": rows},
                "slm": {**base["slm"], **({} if share is None else {"backward": "filtered", "filtered_layers": share})},
            }
        )
        steps = Steps(config, world, frequent_and_rare(VOCAB_SIZE, world.device))
        steps.engine.model.backward_filter.leaves_out = share is not None
        return partial(steps.step, SelectiveObjective(SelectionRule(KeepRatio(KEEP_RATIO))))

    layers = architecture.num_layers
    alternatives = {
        "exact, nothing recomputed": step_of("none", None),
        "exact, all recomputed": step_of("full", None),
        f"{max(1, round(0.75 * layers))} of {layers} layers filtered": step_of("full", 0.75),
        f"{layers} of {layers} layers filtered": step_of("full", 1.0),
    }
    taken = in_turns(alternatives, repetitions=1 if quick else 7, clock=time.process_time)
    leave_world()
    whole = taken["exact, all recomputed"]
    return [
        {"step": name, "seconds": own.median, "time": own.over(whole), "spread": own.spread(whole)}
        for name, own in taken.items()
    ]


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        off = cosines(Path(temporary), quick=chosen.quick)
    taken = times(quick=chosen.quick)
    bars = [
        Bar("step, all layers filtered", float(taken[-1]["time"]), MOST_STEP),
        Bar("cosine, all layers filtered", float(off[-1]["cosine"]), LEAST_COSINE, "higher"),
        Bar("step, three quarters filtered", float(taken[-2]["time"]), MOST_STEP),
        Bar("cosine, three quarters filtered", float(off[-2]["cosine"]), LEAST_COSINE, "higher"),
    ]
    empty = dict.fromkeys(("filtered layers", "cosine", "step", "seconds", "time", "spread"), "")
    report(
        f"What does a backward pass without unselected tokens save, and how far is its gradient off? k = {KEEP_RATIO}",
        [{**empty, **row} for row in (*off, *taken)],
        bars,
        chosen,
    )


if __name__ == "__main__":
    main()
