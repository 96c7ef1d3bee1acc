"""Run folders written without training: what `megaslm report` reads of them."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaslm.config.source import dump
from tests.toy import SEQ_LEN, SHAPE, make_tokenizer, run_config

STEP_TOKENS = 8 * SEQ_LEN
STEPS = 6
TOKENS_PER_SECOND = 64.0
PLACE = "held/a"
MODEL = {
    "model_type": "llama",
    "hidden_size": SHAPE["hidden_size"],
    "intermediate_size": SHAPE["intermediate_size"],
    "num_hidden_layers": SHAPE["num_layers"],
    "num_attention_heads": SHAPE["num_heads"],
    "num_key_value_heads": SHAPE["num_kv_heads"],
    "vocab_size": SHAPE["vocab_size"],
}
FORWARD_FLOPS = 2 * (2 * (32 * (2 * 32 + 2 * 2 * 8) + 3 * 32 * 48) + 64 * 32) + 2 * 4 * 32 * SEQ_LEN / 2
"""Of that model, per token of rows of 16 targets, by the formula of `forward_flops_per_token`."""


def write_run(
    folder: Path,
    *,
    losses: Sequence[float] = (4.0, 3.0, 2.0, 1.0),
    steps: int = STEPS,
    keep_ratio: str | None = None,
    cost: Mapping[str, Any] | None = None,
    sections: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """A run of six steps that has made `steps` of them, with validations spread evenly over the six: as many of
    `losses` as it has come to. Selective with a `keep_ratio`."""
    changes: dict[str, dict[str, Any]] = {name: dict(section) for name, section in (sections or {}).items()}
    if keep_ratio is not None:
        changes["train"] = {"objective": "slm", **changes.get("train", {})}
        changes["slm"] = {"keep_ratio": keep_ratio, **changes.get("slm", {})}
    config = run_config(folder, Path("data/tokens" if keep_ratio is None else "data/scored"), **changes)
    ratio = float(keep_ratio or 1.0)
    validated = {round(number * STEPS / (len(losses) - 1)): loss for number, loss in enumerate(losses)}
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            lines.append(step_line(step, ratio))
        if step in validated:
            lines.append(validation_line(step, validated[step]))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_tokenizer(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    if cost is not None:
        (folder / "cost.json").write_text(json.dumps(cost))
    return folder


def step_line(step: int, ratio: float = 1.0, **changes: object) -> dict[str, Any]:
    """The line of a step."""
    line = {
        "kind": "step", "step": step, "tokens": step * STEP_TOKENS, "loss": 5.0 - step, "all_loss": 5.5 - step,
        "selected_ratio": ratio, "learning_rate": 0.01, "gradient_norm": 1.0, "tokens_per_second": TOKENS_PER_SECOND,
        "threshold": None, "domain_ratio": {"a": ratio}, "domain_tokens": {"a": step * STEP_TOKENS},
        "domain_passes": {"a": step / 10},
    }  # fmt: skip
    return line | changes


def validation_line(step: int, loss: float | None, *, name: str = "held", domain: str = "a") -> dict[str, Any]:
    """The line of a validation."""
    return {
        "kind": "validation", "step": step, "tokens": step * STEP_TOKENS, "name": name, "domain": domain,
        "loss": loss, "perplexity": 7.0, "targets": 10,
    }  # fmt: skip


def cost_of(*, seconds: float, ratio: float = 1.0, gpu_hours: float = 0.0) -> dict[str, Any]:
    """The cost.json of a whole run."""
    tokens = STEPS * STEP_TOKENS
    training = {"tokens_seen": tokens, "tokens_selected": int(ratio * tokens), "seconds": seconds, "ranks": 1}
    return {"training": {**training, "gpu_hours": gpu_hours}}


def scored_cost(*, seconds: float, ratio: float, reference: float, scoring: float) -> dict[str, Any]:
    """The cost.json of a whole selective run, whose reference read 1,000 targets; all times in seconds."""
    trained = {"seconds": reference, "gpu_hours": 0.0, "tokens_seen": 1000, "tokens_selected": 990, "ranks": 1}
    parts = {"scoring": {"seconds": scoring, "gpu_hours": 0.0}, "reference_training": trained}
    return {**cost_of(seconds=seconds, ratio=ratio), **parts, "datasets": {"data.train": parts}}


def unpacked(found: Mapping[str, Any]) -> np.ndarray:
    """An array of the document."""
    data, shape = base64.b64decode(found["data"]), tuple(found["shape"])
    if found["dtype"] == "bits":
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[: int(np.prod(shape))].astype(bool).reshape(shape)
    return np.frombuffer(data, f"<{found['dtype']}").reshape(shape)


def means_of_spans(value: np.ndarray, valid: np.ndarray, opens: Sequence[Sequence[int]], reach: int) -> np.ndarray:
    """The mean of the valid values at most `reach` targets away in the same document, (R, L), by the definition."""
    means = np.zeros_like(value)
    for row, place in np.ndindex(value.shape):
        begins = max([first for first in opens[row] if first <= place], default=0)
        ends = min([first for first in opens[row] if first > place], default=value.shape[1])
        span = slice(max(begins, place - reach), min(ends, place + reach + 1))
        if valid[row, span].any():
            means[row, place] = value[row, span][valid[row, span]].astype(np.float64).mean()
    return means


def kept_by_page(heat: Mapping[str, Any]) -> np.ndarray:
    """The page's rule: of the targets shown, K = ⌊k·N + ½⌋ of largest value, ties to the lower (row, position)."""
    loss = unpacked(heat["checkpoints"][-1]["loss"])
    assert loss.dtype == np.float32
    ref_loss = None if heat["ref_loss"] is None else unpacked(heat["ref_loss"]).astype(np.float32)
    values = {"excess": lambda: loss - ref_loss, "loss": lambda: loss, "reference": lambda: -ref_loss}
    value = values[heat["criterion"]]()
    valid = np.stack([unpacked(row["valid"]) for row in heat["rows"]])
    if heat["span_reach"] is not None:
        value = means_of_spans(value, valid, [row["new_document"] for row in heat["rows"]], heat["span_reach"])
    limit = heat["max_ref_loss"]
    eligible = valid if limit is None else valid & (ref_loss <= limit)
    groups = value.shape if heat["scope"] == "sequence" else (1, -1)
    kept = []
    for group, may, counts in zip(value.reshape(groups), eligible.reshape(groups), valid.reshape(groups), strict=True):
        order = np.argsort(-group, kind="stable")
        order = order[may[order]][: int(np.floor(heat["keep_ratio"] * counts.sum() + 0.5))]
        kept.append(np.isin(np.arange(len(group)), order))
    return np.stack(kept).reshape(value.shape)
