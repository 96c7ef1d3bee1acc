"""Exports opened by a plain script under the oldest and the newest release of transformers that MegaSLM allows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaslm.config.recipe import Bos
from megaslm.errors import ModelError
from megaslm.model.export import describe_model, save_hugging_face
from megaslm.model.load import load_pretrained
from megaslm.tokenizer.tokenizer import FolderEncoder
from tests.doc_tables import require_table
from tests.model_folders import make_model, rows
from tests.unit.model.test_export import LLAMA3, TEXT, byte_tokenizer, trained
from tests.unit.model.test_folder_table import settings, tie

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OLDEST = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.2")
SCRIPT = """
import json, sys
import numpy as np, torch, transformers
from torch.nn import functional as F
transformers.utils.logging.set_verbosity_error()
tokens = torch.from_numpy(np.load(sys.argv[1]))
found = {}
for folder in sys.argv[3:]:
    lm = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = lm(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    ids = tokenizer(sys.argv[2], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    prompt = tokenizer("the quick", return_tensors="pt")
    made = lm.generate(**prompt, max_new_tokens=2, do_sample=False)
    plain = tokenizer("the quick", add_special_tokens=False)["input_ids"]
    front = prompt["input_ids"][0].tolist()[: -len(plain)]
    found[folder] = {"loss": float(loss), "ids": ids, "generated": made.shape[1] - prompt["input_ids"].shape[1]}
    found[folder]["front"] = front
print(json.dumps({"version": transformers.__version__, "folders": found}))
"""
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
LOCAL = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
ANGLES = {"rope_type": "default", "rope_theta": 300.0}
PER_LAYER = {"sliding_attention": {**ANGLES, "rope_theta": 7e4}, "full_attention": {**ANGLES, "rope_theta": 7e4}}
MODELS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "llama": ("llama", {}, settings()),
    "llama, another `rope_theta`": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        settings(),
    ),
    "llama, positions scaled (llama3)": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        settings(),
    ),
    "llama, positions scaled (yarn)": ("llama", {"rope_parameters": YARN}, settings()),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, settings()),
    "llama, tied by config.json, with a head of its own": ("llama", {}, tie(True, "both")),
    "mistral, window": ("mistral", {"sliding_window": 5}, settings()),
    "granite, multipliers": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}, settings()),
    "qwen3": ("qwen3", {"head_dim": 16}, settings()),
    "olmo2": ("olmo2", {}, settings()),
    "olmo3, window": ("olmo3", {**LOCAL, "rope_parameters": PER_LAYER}, settings()),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}, settings()),
    "phi3, part of each head rotated": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        settings(),
    ),
    "gemma3_text, a window and angles of its own": (
        "gemma3_text",
        {**LOCAL, "head_dim": 16, "rope_parameters": {**PER_LAYER, "sliding_attention": ANGLES}},
        settings(),
    ),
    "qwen2, with a tokenizer that is not Qwen2's": ("qwen2", {}, settings()),
}


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest release of transformers."""
    folder = tmp_path_factory.mktemp("transformers-4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *OLDEST]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{OLDEST[0]} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def opened(exports: list[Path], work: Path, path: Path | None) -> dict[str, Any]:
    """What a plain script makes of folders, with the release of transformers that lies at `path`."""
    command = [sys.executable, "-c", SCRIPT, str(work / "rows.npy"), TEXT, *map(str, exports)]
    environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_plain_script_opens_the_trained_model_under_every_release(oldest: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows().numpy())
    byte_tokenizer(tmp_path / "tokenizer")
    expected_ids = FolderEncoder(tmp_path / "tokenizer").encode([TEXT])[0].tolist()
    table, exports = {}, {}
    for number, (name, (family, architecture, change)) in enumerate(MODELS.items()):
        make_model(tmp_path / f"origin-{number}", family, vocab_size=300, **architecture)
        change(tmp_path / f"origin-{number}")
        lm = load_pretrained(tmp_path / f"origin-{number}", dtype=torch.float32)
        try:
            # Rows of every second model had BOS.
            bos: Bos = "document" if number % 2 else "none"
            described = tmp_path / f"described-{number}"
            describe_model(lm, torch.float32, tmp_path / "tokenizer", described, pretrained=None, bos=bos)
        except ModelError:
            table[name] = "refused before training: AutoTokenizer of release 5 would build a different tokenizer"
            continue
        save_hugging_face(trained(lm), tmp_path / f"described-{number}", tmp_path / f"export-{number}")
        with torch.no_grad():
            logits = lm(rows()[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows()[:, 1:].flatten())
        exports[name] = tmp_path / f"export-{number}", float(loss), [] if bos == "none" else [0]
    versions = []
    for release in (oldest, None):
        found = opened([folder for folder, _, _ in exports.values()], tmp_path, release)
        versions.append(found["version"])
        for name, (folder, loss, front) in exports.items():
            seen = found["folders"][str(folder)]
            assert abs(seen["loss"] - loss) <= 1e-5, name
            assert seen["ids"] == expected_ids, name
            assert seen["generated"] == 2, name
            assert seen["front"] == front, name
            table[name] = "same loss within 1e-5 nats, same ids, generates"
    assert versions[0].startswith("4.57.")
    assert versions[1].startswith("5.")
    columns = ("model", "result of a plain script under transformers 4.57 and 5")
    require_table("inputs.md", "exports", columns, [(name, table[name]) for name in MODELS])
