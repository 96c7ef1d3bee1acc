"""A document of a report as `megaslm report` makes it: a CLM run, two SLM runs, and one that has only begun."""

import base64
import json
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.slm.targets import Targets
from megaslm.slm.topk import keep_count, select_top

Document = dict[str, Any]
STEPS = 200
STEP_TOKENS = 4096
ROW_TARGETS = 120
CHECKPOINTS = 5
KEEP_RATIO = 0.6
TEXTS = (
    "A selective model reads every token of a page, and yet it learns from a part of them only. The reference has "
    "read good pages before, so it knows which words a careful writer would have chosen.\nWhere both are surprised, "
    "the word is noise. Where the model alone is surprised, there is something to learn. ",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n\n"
    "# The sum of no values is 0.0, and their mean is not a number.\nassert mean([1.0, 2.0, 3.0]) == 2.0\n",
    "Kelp forests grow along cold coasts, where nutrients rise from deep water. A single blade may grow half a metre "
    "in a day. Sea urchins graze on the young stems, and otters graze on the urchins.\n",
)
HOSTILE = (
    *("</script>", "<script>window.ran = 1</script>", '<img src="x" onerror="window.ran = 2">', "<!--", "]]>"),
    *(
        "javascript:window.ran=3",
        "\u202egnirts",
        "\u200f",
        "\x00",
        "\x1b[31m",
        "\x07",
        "\ud800",
        "\udfff",
        "\u2028",
        "\u2029",
    ),
    *("$style", "${script}", "{{ 7 * 7 }}", "{#", "&lt;b&gt;", "\u0000\ufeff", "مرحبا", "𝔘", "a\tb", "w" * 5000),
)

MARKUP = '"><img src=x onerror="window.ran = 4"></script><script>window.ran = 5</script>'


def packed(values: Any, dtype: str = "f4") -> Document:
    """Numbers as the page unpacks them."""
    array = np.asarray(values)
    data = np.packbits(array.ravel(), bitorder="little") if dtype == "bits" else array.astype(f"<{dtype}")
    return {"dtype": dtype, "shape": list(array.shape), "data": base64.b64encode(data.tobytes()).decode()}


def document(pieces: list[list[str]] | None = None) -> Document:
    """The whole document. `pieces`: texts of the probe rows, `ROW_TARGETS` of them in each."""
    runs = [_run("clm", 1.0, 0.0), _run("slm-0.6", 0.6, 0.27), _run("slm-0.4", 0.4, 0.18)]
    heat = [heat_of("slm-0.6", pieces or rows_of_text()), clm_heat("clm", pieces or rows_of_text())]
    return {
        "megaslm": "0.1.0",
        "written": "2026-01-02T03:04:05Z",
        "title": "clm, slm-0.6, slm-0.4",
        "notes": [],
        "in_short": ["slm-0.6 ended 0.2700 nats lower than clm on target."],
        "runs": [*runs, _unfinished_run()],
        "targets": [_targets()],
        "sweep": _sweep(),
        "costs": _costs(),
        "dynamics": [_dynamics("slm-0.6")],
        "heat": heat,
    }


def rows_of_text() -> list[list[str]]:
    """Rows of words with their spaces, from texts of this file."""
    return [_words(text)[:ROW_TARGETS] for text in TEXTS]


def hostile_rows() -> list[list[str]]:
    """Rows whose first pieces are what a page must not run, reorder or fail on."""
    filler = _words(TEXTS[0])
    return [[*HOSTILE, *filler][:ROW_TARGETS], filler[:ROW_TARGETS]]


def hostile_document() -> Document:
    """Hostile texts in every place that the names and texts of users reach."""
    text = json.dumps(document(hostile_rows()))
    names = (
        "slm-0.6",
        "prose",
        "llama, 1.3M parameters",
        "surprised",
        "end of clm",
        "arithmetic",
        "runs/sweep",
        "1.26M",
    )
    for name in names:
        text = text.replace(name, json.dumps(MARKUP)[1:-1])
    return {**json.loads(text), "title": MARKUP, "notes": [MARKUP]}


def losses_of(pieces: list[list[str]]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Losses (C, R, L), the reference's (R, L), and which targets are valid."""
    generator = np.random.default_rng(0)
    shape = (len(pieces), ROW_TARGETS)
    ref_loss = generator.gamma(2.0, 1.2, shape).astype(np.float16).astype(np.float32)
    start = 5 + generator.normal(0, 1, shape)
    end = ref_loss + generator.normal(0.4, 0.8, shape)
    share = np.linspace(0, 1, CHECKPOINTS)[:, None, None]
    losses = np.maximum(start * (1 - share) + end * share, 0.01).astype(np.float32)
    # Half of the values are equal, so that ties decide: the lower target is kept.
    losses[-1, :, ::2] = ref_loss[:, ::2] + 0.5
    valid = np.ones(shape, bool)
    valid[:, -7:] = False
    return losses, ref_loss, valid


def kept_of(
    losses: NDArray[np.float32], ref_loss: NDArray[np.float32], valid: NDArray[np.bool_], ratio: str
) -> NDArray[np.bool_]:
    """What megaslm.slm keeps of all rows together by excess loss."""
    flat = torch.from_numpy(valid.reshape(1, -1))
    targets = Targets(valid=flat, keys=torch.arange(flat.numel())[None])
    values = torch.from_numpy((losses - ref_loss).reshape(1, -1))
    count = keep_count(targets.valid.sum(1), Decimal(ratio))
    return select_top(values, targets.keys, flat, count).mask.view(valid.shape).numpy()


def heat_of(run: str, pieces: list[list[str]]) -> Document:
    """The heat map of an SLM run. The last losses are stored as the training has them."""
    losses, ref_loss, valid = losses_of(pieces)
    kept = kept_of(losses[-1], ref_loss, valid, str(KEEP_RATIO))
    last = CHECKPOINTS - 1
    return {
        "run": run,
        "domains": ["prose", "code"],
        "rows": [
            {
                "domain": int(row == 1),
                "row": 17 + row,
                "first": "The ",
                "pieces": texts,
                "valid": packed(valid[row], "bits"),
                "new_document": [40] if row == 0 else [],
            }
            for row, texts in enumerate(pieces)
        ],
        "ref_loss": packed(ref_loss, "f2"),
        "checkpoints": [
            {
                "step": 50 * (number + 1),
                "tokens": 50 * (number + 1) * STEP_TOKENS,
                "loss": packed(losses[number], "f4" if number == last else "f2"),
                "kept": packed(kept, "bits") if number == last else None,
            }
            for number in range(CHECKPOINTS)
        ],
        "keep_ratio": KEEP_RATIO,
        "criterion": "excess",
        "scope": "batch",
        "span_reach": None,
        "max_ref_loss": None,
        "kept_by_run": packed(kept, "bits"),
        "probe_rows": len(pieces),
        "note": None,
    }


def clm_heat(run: str, pieces: list[list[str]]) -> Document:
    """The heat map of a CLM run, which keeps every token."""
    heat = heat_of(run, pieces)
    checkpoints = [{**checkpoint, "kept": None} for checkpoint in heat["checkpoints"]]
    note = "1 of 6 measurements is left out to keep the page small."
    return {**heat, "keep_ratio": None, "kept_by_run": None, "checkpoints": checkpoints, "note": note}


def _words(text: str) -> list[str]:
    pieces: list[str] = []
    for letter in text * 3:
        if pieces and letter.isalnum() and (pieces[-1][-1].isalnum() or pieces[-1] == " "):
            pieces[-1] += letter
        else:
            pieces.append(letter)
    return pieces


def _run(name: str, ratio: float, gain: float) -> Document:
    steps = np.arange(1, STEPS + 1)
    share = steps / STEPS
    loss = 4.2 + 5.5 * np.exp(-6 * share) - gain * share
    noise = np.random.default_rng(len(name)).normal(0, 0.04, STEPS)
    axes = _axes(steps, ratio)
    places = np.arange(20, STEPS + 1, 20) - 1
    at = {key: packed(values[places], "f8") for key, values in axes.items()}
    slm = ratio < 1
    selection = f"keep_ratio {ratio}, excess" if slm else "all tokens"
    return {
        "name": name,
        "path": f"runs/sweep/{name}",
        "objective": "slm" if slm else "clm",
        "about": f"llama, 1.3M parameters, {selection}, demo/train",
        "state": "complete",
        "notes": [],
        "facts": [["parameters", "1.26M"], ["learning rate", "1e-3"], ["tokens", f"{STEPS * STEP_TOKENS:,}"]],
        "series": {
            **{key: packed(values, "f8") for key, values in axes.items()},
            "loss": packed(loss + noise + (0.9 if slm else 0)),
            "all_loss": packed(loss + noise),
            "selected_ratio": packed(ratio + noise / 10) if slm else None,
            "threshold": packed(0.4 * share + noise) if slm else None,
            "learning_rate": packed(1e-3 * np.cos(share * 1.4)),
            "gradient_norm": packed(1 + 3 * np.exp(-9 * share) + np.abs(noise)),
            "tokens_per_second": packed(6500 + 1e4 * noise),
            "steps_per_point": 1.0,
            "points": STEPS,
        },
        "before": {"flops": 4.1e14 if slm else 0, "seconds": 64.0 if slm else 0, "gpu_hours": None},
        "validations": [
            {"place": "target", **at, "loss": packed((loss + 0.1)[places])},
            {"place": "corpus", **at, "loss": packed((loss + 0.3 + 2 * gain * share)[places])},
        ],
        "tasks": [
            {"name": "arithmetic", "measure": "accuracy", **at, "value": packed((0.2 + (0.3 + gain) * share)[places])}
        ],
        "domains": [
            {
                "name": domain,
                "tokens": STEPS * STEP_TOKENS * part,
                "passes": passes,
                "selected_ratio": ratio + shift if slm else 1.0,
                "validation_loss_first": 8.9,
                "validation_loss_last": 4.3 - gain,
            }
            for domain, part, passes, shift in (("prose", 0.25, 1.9, 0.12), ("code", 0.75, 0.8, -0.04))
        ],
    }


def _axes(steps: NDArray[np.int64], ratio: float) -> dict[str, NDArray[np.float64]]:
    tokens = steps * float(STEP_TOKENS)
    return {
        "step": steps.astype(np.float64),
        "tokens": tokens,
        "selected_tokens": tokens * ratio,
        "flops": tokens * 1.5e9,
        "seconds": tokens / 6500,
        "gpu_hours": tokens / 6500 / 3600,
    }


def _unfinished_run() -> Document:
    """A run that has reported nothing yet, of a long name."""
    name = "slm-0.8-with-a-very-long-name-that-somebody-gave-it-in-a-hurry-0123456789"
    empty = {key: packed(np.zeros(0)) for key in ("step", "tokens", "selected_tokens", "seconds", "loss", "all_loss")}
    return {
        **_run(name, 0.8, 0.0),
        "state": "unfinished",
        "notes": ["no step has been reported", "no cost.json yet"],
        "series": {**empty, "flops": None, "gpu_hours": None, "steps_per_point": 1.0, "points": 0},
        "before": {"flops": None, "seconds": None, "gpu_hours": None},
        "validations": [],
        "tasks": [],
        "domains": [],
    }


def _targets() -> Document:
    def reached(run: str, tokens: float | None, ratio: float, before: float) -> Document:
        if tokens is None:
            return dict.fromkeys(("tokens", "selected_tokens", "flops", "seconds", "gpu_hours"), None) | {"run": run}
        seconds = tokens / 6500
        return {
            "run": run,
            "tokens": tokens,
            "selected_tokens": tokens * ratio,
            "flops": tokens * 1.5e9,
            "seconds": seconds,
            "gpu_hours": seconds / 3600,
            "seconds_with_reference": seconds + before,
            "flops_with_reference": None,
            "gpu_hours_with_reference": None,
        }

    return {
        "place": "target",
        "baseline": "clm",
        "sentence": None,
        "rows": [
            {
                "loss": 4.9,
                "why": "three quarters of clm's way",
                "reached": [
                    reached("clm", 330_000, 1, 0),
                    reached("slm-0.6", 290_000, 0.6, 64),
                    reached("slm-0.4", 300_000, 0.4, 64),
                ],
            },
            {
                "loss": 4.314,
                "why": "end of clm",
                "reached": [
                    reached("clm", 819_200, 1, 0),
                    reached("slm-0.6", 524_000, 0.6, 64),
                    reached("slm-0.4", None, 0.4, 64),
                ],
            },
        ],
    }


def _sweep() -> Document:
    points = [("slm-0.4", 0.4, 4.13), ("slm-0.6", 0.6, 4.04), ("clm", 1.0, 4.31)]
    return {
        "key": "slm.keep_ratio",
        "best": {"loss": 4.04, "sentence": "slm.keep_ratio = 0.6 (slm-0.6) ended with the lowest loss."},
        "left_out": ["slm-0.8 is unfinished."],
        "metrics": [
            {
                "place": "target",
                "measure": "loss in nats",
                "points": [{"run": run, "value": value, "loss": loss} for run, value, loss in points],
            }
        ],
    }


def _costs() -> Document:
    def row(run: str, what: str, tokens: float, shared_by: tuple[str, ...] = ()) -> Document:
        return {
            "run": run,
            "what": what,
            "tokens": tokens,
            "selected_tokens": None,
            "seconds": tokens / 6500,
            "gpu_hours": None,
            "flops": tokens * 1.5e9,
            "shared_by": list(shared_by),
        }

    both = ("slm-0.6", "slm-0.4")
    sentence = "The reference and the scoring took 64 s once; slm-0.6 saves 45 s in every run."
    return {
        "rows": [
            *(
                row("clm", "training", 819_200),
                row("slm-0.6", "training", 819_200),
                row("slm-0.4", "training", 819_200),
            ),
            *(row("slm-0.6", "reference training", 300_000, both), row("slm-0.6", "scoring", 116_000, both)),
        ],
        "break_even": [
            {
                "run": "slm-0.6",
                "baseline": "clm",
                "saved_seconds_per_run": 45.0,
                "spent_once_seconds": 64.0,
                "runs": 1.42,
                "sentence": sentence,
            }
        ],
    }


def _dynamics(run: str) -> Document:
    steps = [50 * (number + 1) for number in range(CHECKPOINTS)]
    shares = {"H→L": 0.41, "L→L": 0.3, "H→H": 0.19, "L→H": 0.1}
    examples = [
        {
            "before": "Where the model alone is ",
            "token": "surprised",
            "after": ", there is",
            "losses": [7.1, 6.0, 4.2, 2.0, 1.1],
        },
        {"before": "\ttotal += ", "token": "value", "after": "\n    return", "losses": [6.2, 3.0, 1.5, 0.6, 0.2]},
    ]
    return {
        "run": run,
        "steps": steps,
        "tokens": [step * STEP_TOKENS for step in steps],
        "classes": {name: {"share": share, "tokens": 100, "examples": examples} for name, share in shares.items()},
        "shares_over_time": {
            "steps": steps[2:],
            "tokens": [step * STEP_TOKENS for step in steps[2:]],
            "shares": {name: [share * 0.8, share * 0.9, share] for name, share in shares.items()},
        },
        "kept_share": {"H→L": 0.7, "L→L": 0.4, "H→H": 0.8, "L→H": 0.6},
    }
