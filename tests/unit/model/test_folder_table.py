"""The table of model folders in docs/inputs.md: what becomes of each, as the product does it."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from megaslm.errors import ModelError
from megaslm.model.load import load_pretrained
from megaslm.model.self_check import require_library_losses
from tests.doc_tables import require_table
from tests.model_folders import REMOVED, edit_config, edit_weights, make_model, store_head

Change = Callable[[Path], object]
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def tie(said: bool, stored: str) -> Change:
    return lambda folder: (store_head(folder, stored), edit_config(folder, tie_word_embeddings=said))


def weight(name: str, dtype: torch.dtype = torch.float32) -> Change:
    return lambda folder: edit_weights(folder, **{name: torch.ones(48, 32).to(dtype)})


def settings(**changes: object) -> Change:
    return lambda folder: edit_config(folder, **changes)


FOLDERS: dict[str, tuple[str, Change]] = {
    "llama": ("llama", settings()),
    "mistral": ("mistral", settings()),
    "mistral, all layers within a window": ("mistral", settings(sliding_window=4)),
    "mistral with `layer_types`": ("mistral", settings(layer_types=["full_attention"] * 2)),
    "qwen2": ("qwen2", settings()),
    "qwen2, some layers within a window": (
        "qwen2",
        settings(use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]),
    ),
    "qwen2, a window that no layer uses": (
        "qwen2",
        settings(use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=REMOVED),
    ),
    "granite with multipliers": ("granite", settings(logits_scaling=4.0, residual_multiplier=0.5)),
    "llama with keys of other model families": ("llama", settings(sliding_window=4, logits_scaling=8.0)),
    "another model family": ("llama", settings(model_type="gpt2")),
    "a model type with Python code of its own": (
        "llama",
        settings(model_type="own", auto_map={"AutoConfig": "own.Own"}),
    ),
    "rotary embeddings as release 4 writes them": (
        "llama",
        settings(rope_parameters=REMOVED, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}),
    ),
    "rotary embeddings of type longrope": ("llama", settings(rope_parameters=LONG_ROPE)),
    "tied, embeddings stored": ("llama", tie(True, "embedding")),
    "tied, both stored and equal": ("llama", tie(True, "equal")),
    "tied, both stored and different": ("llama", tie(True, "both")),
    "not tied, both stored and equal": ("llama", tie(False, "equal")),
    "not tied, no head stored": ("llama", tie(False, "embedding")),
    "biases that config.json switches off": ("llama", weight("model.layers.0.mlp.up_proj.bias")),
    "one layer more than config.json has": ("llama", weight("model.layers.2.mlp.up_proj.weight")),
    "an additional value head": ("llama", weight("v_head.weight")),
    "`rotary_emb.inv_freq` of old releases": ("llama", weight("model.layers.0.self_attn.rotary_emb.inv_freq")),
    "weights of 8 bits": ("llama", weight("model.layers.0.mlp.up_proj.weight", torch.float8_e4m3fn)),
    "`quantization_config`": ("llama", settings(quantization_config={"quant_method": "gptq", "bits": 4})),
    "`transformers_weights`": ("llama", settings(transformers_weights="other.safetensors")),
    "an adapter in the same folder": ("llama", lambda folder: (folder / "adapter_config.json").write_text("{}")),
    "a value that transformers refuses": ("llama", settings(hidden_act="unheard-of")),
}


def outcome(folder: Path) -> str:
    try:
        lm = load_pretrained(folder, dtype=torch.float32)
        require_library_losses(lm.config, model=str(folder))
    except ModelError as error:
        reason = str(error).removeprefix(str(folder)).removeprefix("/config.json").removeprefix(": ")
        return f"refused: {re.split('[;:] |, which', reason)[0]}"
    return "loaded, one matrix for embedding and head" if lm.config.tie_word_embeddings else "loaded, separate matrices"


def test_the_table_of_model_folders(tmp_path: Path) -> None:
    found = []
    for number, (name, (family, change)) in enumerate(FOLDERS.items()):
        folder = tmp_path / f"{number}"
        make_model(folder, family)
        change(folder)
        found.append((name, outcome(folder)))
    require_table("inputs.md", "model folders", ("folder", "outcome"), found)
