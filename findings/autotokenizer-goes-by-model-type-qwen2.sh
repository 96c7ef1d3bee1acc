#!/usr/bin/env bash
# transformers 5.23.0: beside a config.json of model type qwen2, AutoTokenizer passes over tokenizer.json's pre-tokeniser and
# the class that tokenizer_config.json names, and builds Qwen2's own tokenizer from the vocabulary: a text gets other ids
# than the same folder gives without that config.json. 4.57.6 reads the file as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/now" && "$work/now/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
python3 -m venv "$work/before" && "$work/before/bin/pip" install --quiet transformers==4.57.6 tokenizers==0.22.2 jinja2==3.1.6
cat >"$work/look.py" <<'PYTHON'
import json, pathlib, sys
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

folder = pathlib.Path(sys.argv[1]) / transformers.__version__
folder.mkdir()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
tokenizer.train_from_iterator(["numbers such as 1234 and 5678"] * 9, trainer)
tokenizer.save(str(folder / "tokenizer.json"))
named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
(folder / "tokenizer_config.json").write_text(json.dumps(named))
text = "numbers such as 1234"
found = []
for config in (None, {"model_type": "llama"}, {"model_type": "qwen2"}):
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    opened = transformers.AutoTokenizer.from_pretrained(folder)
    found.append(opened(text)["input_ids"])
    print(transformers.__version__, config, type(opened).__name__, len(found[-1]), "ids")
same = [ids == tokenizer.encode(text).ids for ids in found]
expected = [True, True, transformers.__version__.startswith("4.")]
sys.exit(same != expected)
PYTHON
"$work/now/bin/python" "$work/look.py" "$work"
"$work/before/bin/python" "$work/look.py" "$work"
