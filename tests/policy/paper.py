"""The settings of Rho-1 (arXiv 2404.07965) beside those of configs/, and the table of docs/recipes.md that holds both.

`python -m tests.policy.paper` writes the table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megaslm.config.load import Loaded, load
from megaslm.config.problems import show
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.config.section import Section

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- settings: begin (made by `python -m tests.policy.paper`) -->", "<!-- settings: end -->"
FAMILIES = {"rho-math-1b": "Rho-Math-1B", "rho-math-7b": "Rho-Math-7B", "rho-general-1b": "Rho-1B"}
RECIPES = {
    "slm.yaml": ("open-web-math", "open-web-math", "slimpajama"),
    "reference.yaml": ("math-curated", "math-curated", "general-curated"),
}
"""The recipes in data/ of the text that a file's runs read, one for each family."""
OF_THE_PAPER = (*FAMILIES, "self-reference-1b", "weak-to-strong-7b", "tora")
"""The folders of configs/ whose runs are those of the paper, or baselines for them."""

_MATH = {"train.total_tokens": 15_000_000_000, "train.global_batch_tokens": 2**20}
_REFERENCE = {"train.epochs": 3, "train.schedule": "cosine", "train.objective": "clm"}
_TOOL_USE = {
    "train.objective": "sft",
    "train.epochs": 3,
    "train.lr": 2e-5,
    "train.global_batch_tokens": 128 * 2048,
    "data.seq_len": 2048,
}
PAPER: Mapping[str, Mapping[str, object]] = {
    "rho-math-1b/slm.yaml": {**_MATH, "train.lr": 8e-5, "slm.keep_ratio": 0.6, "slm.criterion": "excess"},
    "rho-math-7b/slm.yaml": {**_MATH, "train.lr": 2e-5, "slm.keep_ratio": 0.7, "slm.criterion": "excess"},
    "rho-general-1b/slm.yaml": {
        **_MATH,
        "train.total_tokens": 80_000_000_000,
        "train.lr": 1e-4,
        "slm.keep_ratio": 0.6,
        "slm.criterion": "excess",
    },
    "rho-math-1b/reference.yaml": {**_REFERENCE, "train.lr": 5e-5, "data.seq_len": 2048},
    "rho-math-7b/reference.yaml": {**_REFERENCE, "train.lr": 1e-5, "data.seq_len": 4096},
    "rho-general-1b/reference.yaml": {**_REFERENCE, "train.lr": 5e-5, "data.seq_len": 2048},
    "rho-math-1b/ratio-sweep.yaml": {"train.total_tokens": 5_000_000_000},
    "tora/1b.yaml": _TOOL_USE,
    "tora/7b.yaml": _TOOL_USE,
    "self-reference-1b/low-loss.yaml": {"slm.keep_ratio": 0.7, "slm.criterion": "reference"},
    "self-reference-1b/low-entropy.yaml": {"slm.keep_ratio": 0.6, "slm.criterion": "entropy"},
    "self-reference-1b/intersection.yaml": {"slm.keep_ratio": 0.7, "slm.criterion": "reference_and_entropy"},
}
"""What the paper gives of a file's settings (sections 2 and 3, appendix)."""

RESULTS_DEPEND_ON = (
    "model.from_pretrained",
    "model.precision",
    "model.document_isolation",
    "data.seq_len",
    "train.objective",
    "train.global_batch_tokens",
    "train.lr",
    "train.schedule",
    "train.warmup_tokens",
    "train.min_lr_ratio",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.eps",
    "train.max_grad_norm",
)
SELECTION_DEPENDS_ON = ("slm.keep_ratio", "slm.criterion", "slm.scope", "slm.mode", "slm.max_ref_loss")
_LENGTH = ("train.epochs", "train.total_tokens")


@dataclass(frozen=True)
class Cell:
    """A setting of one file."""

    value: object
    mark: str
    """`paper`, `ours`, or empty where its line has neither."""

    def __str__(self) -> str:
        return f"{_shown(self.value)} · {'equal' if self.mark == 'paper' else self.mark}"


def _shown(value: object) -> str:
    match value:
        case bool() | None:
            return show(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}".replace("e-0", "e-")
        case _:
            return str(value)


def loaded(name: str) -> Loaded[RunConfig]:
    """A file of configs/, by its path there."""
    return load(RunConfig, CONFIGS / name)


def value_of(config: Section, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def mark_at(origin: str) -> str:
    """The mark, `paper` or `ours`, of the comment on the line of an origin FILE:LINE; empty where there is none."""
    file, _, number = origin.rpartition(":")
    if not number.isdecimal():
        return ""
    comment = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1].partition("# ")[2]
    word = comment.partition(":")[0].partition(",")[0].strip()
    return word if word in ("paper", "ours") else ""


def cell(found: Loaded[Section], key: str) -> Cell:
    """A setting of a loaded file."""
    return Cell(value_of(found.value, key), mark_at(found.provenance[key]))


def table() -> str:
    """The comparison, as two tables in Markdown."""
    corpus = [*(key for key in RESULTS_DEPEND_ON), *SELECTION_DEPENDS_ON]
    return "\n".join(
        [
            "The run on the corpus (`slm.yaml`):\n",
            *_table("slm.yaml", corpus),
            "\nThe reference (`reference.yaml`):\n",
            *_table("reference.yaml", list(RESULTS_DEPEND_ON)),
        ]
    )


def _table(name: str, keys: list[str]) -> Iterator[str]:
    runs = [loaded(f"{family}/{name}") for family in FAMILIES]
    yield f"| setting | {' | '.join(FAMILIES.values())} |"
    yield f"|---|{'---|' * len(FAMILIES)}"
    length = next(key for key in _LENGTH if value_of(runs[0].value, key) is not None)
    for key in (keys[0], length, *keys[1:]):
        yield f"| `{key}` | {' | '.join(str(cell(run, key)) for run in runs)} |"
    recipes = [load(Recipe, ROOT / "data" / f"{recipe}.yaml") for recipe in RECIPES[name]]
    yield f"| `bos` of the recipe | {' | '.join(str(cell(recipe, 'bos')) for recipe in recipes)} |"


def with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
