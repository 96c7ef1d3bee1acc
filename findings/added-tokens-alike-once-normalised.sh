#!/usr/bin/env bash
# tokenizers 0.23.3: of two added tokens that the normaliser turns into one text, a text gets the one or the other by chance,
# another one from one loading of the same file to the next.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet tokenizers==0.23.3
"$work/venv/bin/python" - <<'PYTHON'
import sys
from collections import Counter
from tokenizers import AddedToken, Tokenizer, models, normalizers

tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate("<>lot")}, []))
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.add_tokens([AddedToken(name, normalized=True) for name in ("<tool>", "<TOOL>")])
saved = tokenizer.to_str()
found = Counter(tuple(Tokenizer.from_str(saved).encode("<tool>").ids) for _ in range(200))
print("ids of <tool> in 200 loadings of one file:", dict(found))
sys.exit(len(found) != 2)
PYTHON
