"""The command that makes a dataset that a run lacks, where the names of its folders tell it."""

import shlex
from pathlib import Path

from megaslm.config.hub import PUBLISHED
from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.errors import ConfigError

_RECIPES = Path("data")


def making_command(place: str, seq_len: int, reference: str | None = None) -> str | None:
    """The command for a dataset of rows of `seq_len` targets at `place`; None where its name does not tell it.

    `datasets/RECIPE-MODEL-LENGTH/tokens` is made of text by `data/RECIPE.yaml`, with the tokenizer of one of the models
    of configs/. Beside it, `scored` is made of `tokens` by the reference of the run.
    """
    folder = Path(place)
    if folder.name == "scored" and reference is not None:
        return shlex.join(["megaslm", "score", "--reference", reference, str(folder.parent / "tokens"), place])
    named = [path for path in _RECIPES.glob("*.yaml") if folder.parent.name.startswith(f"{path.stem}-")]
    if folder.name != "tokens" or not named:
        return None
    path = max(named, key=lambda path: len(path.stem))
    model = folder.parent.name.removeprefix(f"{path.stem}-").partition("-")[0]
    tokenizer = next((f"models/{name}" for name in PUBLISHED if name.startswith(f"{model}-")), None)
    try:
        recipe = load(Recipe, path).value
    except ConfigError:
        return None
    if tokenizer is None:
        return None
    settings = [] if recipe.seq_len == seq_len else ["--set", f"seq_len={seq_len}"]
    if recipe.tokenizer.huggingface != tokenizer:
        settings += ["--set", f"tokenizer.huggingface={tokenizer}"]
    return shlex.join(["megaslm", "prepare", str(path), place, *settings])
