#!/usr/bin/env bash
# transformers 5.23.0: AutoConfig makes a ministral of a config.json that says mistral and has the key layer_types, and then
# every layer has the window that the key says; MistralConfig itself, given the same file, does not read the key.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet transformers==5.23.0
cat >"$work/config.json" <<'JSON'
{"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 4, "layer_types": ["full_attention", "full_attention"]}
JSON
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
from transformers import AutoConfig, MistralConfig

found = [kind.from_pretrained(sys.argv[1]).model_type for kind in (AutoConfig, MistralConfig)]
print("AutoConfig:", found[0], "MistralConfig:", found[1])
sys.exit(found != ["ministral", "mistral"])
PYTHON
