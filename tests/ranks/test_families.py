"""Every model family, from a folder to an export, beside plain transformers; and their table in docs/inputs.md."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Tokenizer

from megaslm.dataset.manifest import TOKENIZER, read_manifest
from megaslm.errors import ModelError
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.families import FAMILIES
from megaslm.model.folder import check_model_folder
from megaslm.model.load import load_pretrained
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every, HeadOutput
from megaslm.training.export import export
from tests.chain import Chain
from tests.doc_tables import require_table
from tests.model_folders import make_model, plain_losses, rows
from tests.toy import EOS_ID, make_dataset, run_config
from tests.training import losses, run_training, with_steps

TOLERANCE = 1e-5
BYTES = 256
LOCAL = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 2, TinyLlama, SmolLM2", {}),
    "llama, tied, scaled positions": (
        "Llama 3.x",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2, Qwen2.5", {}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "olmo2": ("OLMo 2", {}),
    "olmo3": ("OLMo 3", LOCAL),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "phi": ("Phi-1, Phi-1.5, Phi-2", {}),
    "phi3": ("Phi-3, Phi-4", {}),
    "gemma3_text": ("Gemma 3 (text)", {**LOCAL, "head_dim": 16, "tie_word_embeddings": True}),
    "granite": ("Granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
}
REFUSED = {
    "gemma2": ("Gemma 2", "caps the scores of attention and the logits, which the kernels and the head do not"),
    "qwen3_moe": ("Qwen3 MoE", "mixtures of experts are not loaded yet"),
    "olmoe": ("OLMoE", "mixtures of experts are not loaded yet"),
}
HEADER = ("model type", "models", "losses and gradients", "two ranks under ZeRO-3", "export")


def family_of(name: str) -> str:
    return name.split(",")[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def library_gradients(folder: Path, tokens: Tensor) -> dict[str, Tensor]:
    """Of the sum of all losses, each document alone."""
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    for row in tokens:
        starts = [0, *((row[:-1] == EOS_ID).nonzero().flatten() + 1).tolist(), len(row)]
        for start, stop in pairwise(starts):
            if stop - start > 1:
                logits = lm(row[None, start : stop - 1], use_cache=False).logits[0]
                F.cross_entropy(logits, row[start + 1 : stop], reduction="sum").backward()
    return {name: parameter.grad for name, parameter in lm.named_parameters() if parameter.grad is not None}


def require_the_librarys(folder: Path) -> None:
    """Losses and gradients, these also by layers that leave out of their backward pass what is not trained."""
    tokens, expected = rows(), library_gradients(folder, rows())
    valid = tokens[:, :-1] != EOS_ID
    for leaves_out in (False, True):
        lm = load_pretrained(folder, dtype=torch.float32).train()
        filtered = lm.config.num_hidden_layers if leaves_out else 0
        prepare_layers(lm, recompute="full" if leaves_out else "none", compiled=False, filtered=filtered)
        model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
        model.backward_filter.leaves_out = leaves_out
        measured = model.measure(tokens).losses
        assert (measured.where(valid, 0.0) - plain_losses(folder, tokens)).abs().max() <= TOLERANCE
        output = model(tokens, Every(valid.flatten()))
        assert isinstance(output, HeadOutput)
        output.total.backward()
        found = {name.removeprefix("lm."): parameter.grad for name, parameter in model.named_parameters()}
        for name, gradient in expected.items():
            assert relative_error(found[name], gradient) <= TOLERANCE, (name, leaves_out)


def qwen2_tokens(folder: Path) -> Path:
    """A dataset of bytes: AutoTokenizer opens every tokenizer beside Qwen2 as that family's own."""
    places = (place for place in range(BYTES + 1) if place != EOS_ID)
    vocab = {letter: next(places) for letter in sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": EOS_ID}, merges=[])
    tokenizer.save_pretrained(folder / "tokenizer")
    make_dataset(folder / "tokens", {("train", "a"): [40]}, vocab_size=BYTES + 1, tokenizer=folder / "tokenizer")
    return folder / "tokens"


@pytest.fixture(scope="module")
def table() -> dict[str, tuple[str, ...]]:
    """The rows that were found."""
    return {}


@pytest.mark.parametrize("name", MODELS)
def test_a_family_scores_trains_and_exports_as_transformers_does(
    name: str, chain: Chain, table: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    models, settings = MODELS[name]
    origin = tmp_path / "origin"
    tokens = qwen2_tokens(tmp_path) if name == "qwen2" else chain.tokens
    make_model(origin, family_of(name), **{**settings, "vocab_size": read_manifest(tokens).vocab_size})
    shutil.copytree(tokens / TOKENIZER, origin, dirs_exist_ok=True)
    require_the_librarys(origin)
    exported = {}
    for stage, ranks in ((0, 1), (3, 2)):
        run = tmp_path / f"stage-{stage}"
        model = {"from_scratch": None, "from_pretrained": str(origin)}
        config = run_config(run, tokens, model=model, zero={"stage": stage}, train={"micro_batch_rows": 2})
        run_training(with_steps(config, 2), world_size=ranks)
        export(run, run / "exported")
        exported[stage] = run
    assert losses(exported[3]) == pytest.approx(losses(exported[0]), abs=TOLERANCE)
    assert losses(exported[3])[1] != losses(exported[3])[0]
    divided, whole = (plain_losses(exported[stage] / "exported", rows()) for stage in (3, 0))
    assert (divided - whole).abs().max() <= 10 * TOLERANCE
    assert (whole - plain_losses(origin, rows())).abs().max() > 100 * TOLERANCE
    table[name] = (
        f"`{family_of(name)}`",
        models,
        "equal",
        "as one rank under ZeRO-0",
        "opened by AutoModelForCausalLM",
    )


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_not_known_is_refused_by_name(
    family: str, table: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError, match=family):
        check_model_folder(tmp_path)
    models, reason = REFUSED[family]
    table[family] = (f"`{family}`", models, f"refused: {reason}", "", "")


def test_the_table_of_families(table: dict[str, tuple[str, ...]]) -> None:
    if set(table) != {*MODELS, *REFUSED}:
        pytest.skip("needs the rows of all other tests of this file")
    assert {family_of(name) for name in MODELS} == set(FAMILIES)
    require_table("inputs.md", "model families", HEADER, [table[name] for name in (*MODELS, *REFUSED)])
