#!/usr/bin/env bash
# transformers 4.57.6 keeps the key rope_parameters, in which 5.x alone writes the base and the scaling of rotary embeddings,
# as a plain attribute, and computes with the default base: a model saved by 5.x is another model there, without a word.
# 5.23.0 reads the spelling of 4.x; a config.json with both is the same model in both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/now" && "$work/now/bin/pip" install --quiet transformers==5.23.0
python3 -m venv "$work/before" && "$work/before/bin/pip" install --quiet transformers==4.57.6
cat >"$work/look.py" <<'PYTHON'
import json, sys
import transformers
from transformers import LlamaConfig

scaling = {"rope_type": "linear", "factor": 2.0}
now = {"rope_parameters": {"rope_theta": 500000.0, **scaling}}
before = {"rope_theta": 500000.0, "rope_scaling": scaling}


def read(config):
    config = LlamaConfig.from_dict(config)
    if transformers.__version__.startswith("4."):
        return config.rope_theta, (config.rope_scaling or {}).get("factor")
    return config.rope_parameters["rope_theta"], config.rope_parameters.get("factor")


found = [read(dict(config)) for config in (now, before, {**now, **before})]
print(transformers.__version__, "as 5 writes it:", found[0], "as 4 does:", found[1], "both:", found[2])
first = (10000.0, None) if transformers.__version__.startswith("4.") else (500000.0, 2.0)
sys.exit(found != [first, (500000.0, 2.0), (500000.0, 2.0)])
PYTHON
"$work/now/bin/python" "$work/look.py"
"$work/before/bin/python" "$work/look.py"
