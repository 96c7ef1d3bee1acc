"""`train CONFIG --smoke` works for every file of configs/, on small data of the kind that it reads.

The quick test has tiny models, and not every file: each folder and each choice of a setting is in one of them. The slow
one has a single layer of the real width, with few words.
"""

import json
import re
import shutil
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from megaslm.config.load import load, settings_of
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key
from tests.forked_cli import run_megaslm
from tests.pairwise import pairwise
from tests.scoring import make_reference, run_job, task_of
from tests.toy import EOS_ID, SEQ_LEN, VOCAB_SIZE, make_dataset

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in (ROOT / "configs").rglob("*.yaml")
    if "eval" not in path.parts  # It has tasks, no runs.
)
NAMED = re.compile(r"^(data\.streams|validation\.sets|validation\.tasks)\.[^.]+")
BATCH_ROWS, STEPS = 4, 2
ONE_LAYER = {
    "num_hidden_layers": 1,
    "vocab_size": VOCAB_SIZE,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
WIDTHS = {
    "tinyllama-1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4},
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11_008},
    "mistral-7b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_key_value_heads": 8},
}
WIDTHS |= {"rho-math-1b": WIDTHS["tinyllama-1.1b"], "rho-math-7b": WIDTHS["mistral-7b"]}


@dataclass(frozen=True)
class LookAlikes:
    """Data and a reference of the kinds that the configurations read."""

    tokens: Path
    scored: Path
    scored_with_top: Path
    conversations: Path
    model: Path


@pytest.fixture(scope="module")
def look_alikes(tmp_path_factory: pytest.TempPathFactory) -> LookAlikes:
    root = tmp_path_factory.mktemp("look-alikes")
    found = LookAlikes(*(root / name for name in ("tokens", "scored", "scored-with-top", "conversations", "model")))
    rows = {(split, name): [12] for split in ("train", "heldout") for name in ("docs", "source")}
    make_dataset(found.tokens, rows)
    make_dataset(found.conversations, rows, target_mask=True)
    make_reference(found.model)
    without_history = root / "without-history"
    run_job(1, task_of(found.model, found.tokens, without_history, entropy=True))
    run_job(1, replace(task_of(found.model, without_history, found.scored), column="history"))
    run_job(1, task_of(found.model, found.tokens, found.scored_with_top, top_logits=16))
    return found


def settings_for(name: str, look_alikes: LookAlikes, model: Path, run_dir: Path) -> Iterator[str]:
    """What has to be set for a configuration to run here: places, and the sizes of rows and batches."""
    config = load(RunConfig, ROOT / "configs" / name).value
    scored = look_alikes.scored_with_top if config.slm.distills else look_alikes.scored
    data = {"clm": look_alikes.tokens, "slm": scored, "sft": look_alikes.conversations}[config.train.objective]
    yield f"run_dir={run_dir}"
    yield f"data.seq_len={SEQ_LEN}"
    yield f"train.global_batch_tokens={BATCH_ROWS * SEQ_LEN}"
    yield "train.micro_batch_rows=2"
    if config.train.epochs is not None:
        # The data has a few hundred tokens.
        yield "train.warmup_tokens=0"
    if config.data.train is not None:
        yield f"data.train={data}"
    for stream in config.data.streams:
        # No dataset is read twice.
        copied = run_dir.parent / stream
        shutil.copytree(data, copied)
        yield f"data.streams.{stream}.dataset={copied}"
        if config.data.streams[stream].weight is not None:
            # A small share of a few rows would be less than one of them.
            yield f"data.streams.{stream}.weight=1"
        if config.data.streams[stream].reference is not None:
            yield f"data.streams.{stream}.reference={look_alikes.model}"
    if config.slm.reference is not None:
        yield f"slm.reference={look_alikes.model}"
    for held_out in config.validation.sets:
        held = look_alikes.conversations if config.train.objective == "sft" else look_alikes.tokens
        yield f"validation.sets.{held_out}.dataset={held}"
    if config.model.from_scratch is None:
        yield "model.from_run=null"
        yield f"model.from_pretrained={model}"


def smoke(name: str, settings: list[str], run_dir: Path) -> None:
    options = [option for setting in settings for option in ("--set", setting)]
    run_megaslm("train", ROOT / "configs" / name, "--smoke", "--smoke-steps", str(STEPS), *options)
    result = json.loads(Path(f"{run_dir}.smoke/smoke.json").read_text(encoding="utf-8"))
    assert result["passed"]
    assert not run_dir.exists()


def choices_of(name: str) -> dict[str, Hashable]:
    """The folder of a configuration, and what its settings decide: a choice, or whether there is something."""
    choices: dict[str, Hashable] = {"folder": Path(name).parent}
    for path, value in settings_of(load(RunConfig, ROOT / "configs" / name).value):
        is_choice = isinstance(value, bool) or (isinstance(value, str) and "/" not in value)
        choices[NAMED.sub(r"\1", dotted_key(path))] = value if is_choice else bool(value)
    return choices


QUICK = pairwise(CONFIGS, choices_of, together=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_a_smoke_test_passes(name: str, look_alikes: LookAlikes, tmp_path: Path) -> None:
    settings = list(settings_for(name, look_alikes, look_alikes.model, tmp_path / "run"))
    if load(RunConfig, ROOT / "configs" / name).value.model.from_scratch is not None:
        settings += [f"model.from_scratch.{key}=32" for key in ("hidden_size", "intermediate_size")]
        settings += ["model.from_scratch.num_layers=1", "model.from_scratch.num_heads=4"]
        settings += ["model.from_scratch.num_kv_heads=2"]
    smoke(name, settings, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith(("demo/", "methods/"))])
def test_a_smoke_test_passes_at_the_real_width(name: str, look_alikes: LookAlikes, tmp_path: Path) -> None:
    config = load(RunConfig, ROOT / "configs" / name).value
    model = tmp_path / "model"
    if config.model.from_pretrained is not None:
        shutil.copytree(look_alikes.tokens / "tokenizer", model)
        width = {**WIDTHS[Path(config.model.from_pretrained).name], **ONE_LAYER}
        if width["intermediate_size"] == WIDTHS["mistral-7b"]["intermediate_size"]:
            MistralForCausalLM(MistralConfig(**width, sliding_window=None)).save_pretrained(model)
        else:
            LlamaForCausalLM(LlamaConfig(**width)).save_pretrained(model)
    settings = list(settings_for(name, look_alikes, model, tmp_path / "run"))
    if config.model.from_scratch is not None:
        settings += ["model.from_scratch.num_layers=1", f"model.from_scratch.vocab_size={VOCAB_SIZE}"]
    smoke(name, settings, tmp_path / "run")
    # Several GB.
    shutil.rmtree(tmp_path)
