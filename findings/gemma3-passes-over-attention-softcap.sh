#!/usr/bin/env bash
# transformers 5.23.0: Gemma3TextConfig documents attn_logit_softcapping as a cap of attention's scores, and Gemma 3's attention
# does not read it: the logits of one model are equal with any cap. final_logit_softcapping beside it takes effect.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.3.5
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

SHAPE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
torch.manual_seed(0)
weights = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)).state_dict()
ids = torch.randint(3, 64, (1, 24))


def logits(**settings: float) -> torch.Tensor:
    config = Gemma3TextConfig(**SHAPE, **settings, attn_implementation="eager")
    model = Gemma3ForCausalLM(config).eval()
    model.load_state_dict({name: 20 * weight if weight.ndim > 1 else weight for name, weight in weights.items()})
    with torch.no_grad():
        return model(ids).logits


plain = logits()
by_attention = (logits(attn_logit_softcapping=0.001) - plain).abs().max().item()
by_head = (logits(final_logit_softcapping=0.001) - plain).abs().max().item()
print(f"largest difference of logits: {by_attention} with attn_logit_softcapping = 0.001, {by_head:.3g} with "
      "final_logit_softcapping = 0.001")
sys.exit(not (by_attention == 0 and by_head > 0))
PYTHON
