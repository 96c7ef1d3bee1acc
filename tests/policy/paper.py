"""The settings of Rho-1 (arXiv 2404.07965) beside those of configs/, and the table of docs/recipes.md that holds both.

`python -m tests.policy.paper` writes the table.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megaslm.config.load import DEFAULT, Loaded, load
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
OTHERS = {
    "rho-math-1b/ratio-sweep": "Ratio sweep",
    "self-reference-1b/low-loss": "Low loss",
    "self-reference-1b/low-entropy": "Low entropy",
    "self-reference-1b/intersection": "Intersection",
    "self-reference-1b/proof-pile": "Proof-Pile",
    "weak-to-strong-7b/slm": "Weak to strong",
}
TOOL_USE = {"tora/1b": "1B", "tora/7b": "7B"}
TEXTS = {
    "open-web-math": ("open-web-math",),
    "slimpajama": ("slimpajama",),
    "starcoderdata": ("starcoderdata",),
    "math-curated": ("metamath", "mathinstruct"),
    "general-curated": ("tulu", "openhermes"),
    "proof-pile-2": (),
    "tora": (),
}
"""The recipes in data/ of the paper's text, and the sources that the paper names for certain."""
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
    "rho-math-1b/ratio-sweep.yaml": {"train.total_tokens": 5_000_000_000, "slm.criterion": "excess"},
    "weak-to-strong-7b/slm.yaml": {"model.from_pretrained": "models/llama-2-7b", "slm.criterion": "excess"},
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
_FACTS = ("licence", "reader", "paths", "text_field", "hub")
"""Of a source: where it is, and how it is published."""


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
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value).replace("\n", "\\n")


def loaded(name: str) -> Loaded[RunConfig]:
    """A file of configs/, by its path there."""
    return load(RunConfig, CONFIGS / name)


def value_of(config: Section, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for part in key.split("."):
        match value:
            case Mapping():
                value = value[part]
            case tuple():
                value = value[int(part)]
            case _:
                value = getattr(value, part)
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


def chosen(recipe: str) -> dict[str, Cell]:
    """The settings of a recipe in data/ that decide which text a model sees, and how; those that have a mark, too."""
    found = load(Recipe, ROOT / "data" / f"{recipe}.yaml")
    cells = {key: cell(found, key) for key, origin in found.provenance.items() if origin != DEFAULT}
    decide = ("seq_len", "bos", "heldout_fraction")
    return {
        key: its
        for key, its in cells.items()
        if its.mark or key in decide or (key.startswith("sources.") and key.split(".")[2] not in _FACTS)
    }


def table() -> str:
    """The comparison, as tables in Markdown."""
    corpus = [*RESULTS_DEPEND_ON, *SELECTION_DEPENDS_ON]
    families = {name: {f"{family}/{name}": title for family, title in FAMILIES.items()} for name in RECIPES}
    alike = {key: str(cell(loaded("rho-math-1b/slm.yaml"), key)) for key in (*_LENGTH, *corpus)}
    return "\n".join(
        [
            "The run on the corpus (`slm.yaml`):\n",
            *_table(families["slm.yaml"], corpus),
            *_bos(RECIPES["slm.yaml"]),
            "\nThe reference (`reference.yaml`):\n",
            *_table(families["reference.yaml"], list(RESULTS_DEPEND_ON)),
            *_bos(RECIPES["reference.yaml"]),
            "\nThe other runs on a corpus, in what differs from `configs/rho-math-1b/slm.yaml`:\n",
            *_table({f"{name}.yaml": title for name, title in OTHERS.items()}, corpus, alike),
            "\nTool use (`configs/tora`):\n",
            *_table({f"{name}.yaml": title for name, title in TOOL_USE.items()}, list(RESULTS_DEPEND_ON)),
            *_bos(("tora", "tora")),
            "\nThe texts (`data/`):\n",
            *_texts(),
        ]
    )


def _table(files: Mapping[str, str], keys: list[str], alike: Mapping[str, str] | None = None) -> Iterator[str]:
    """A column per file, under its title. Rows whose cells are all those of `alike` are left out."""
    runs = [loaded(name) for name in files]
    yield f"| setting | {' | '.join(files.values())} |"
    yield f"|---|{'---|' * len(files)}"
    length = next(key for key in _LENGTH if value_of(runs[0].value, key) is not None)
    for key in (keys[0], length, *keys[1:]):
        cells = [str(cell(run, key)) for run in runs]
        if alike is None or set(cells) != {alike[key]}:
            yield f"| `{key}` | {' | '.join(cells)} |"


def _bos(recipes: Iterable[str]) -> Iterator[str]:
    cells = [cell(load(Recipe, ROOT / "data" / f"{recipe}.yaml"), "bos") for recipe in recipes]
    yield f"| `bos` of the recipe | {' | '.join(map(str, cells))} |"


def _texts() -> Iterator[str]:
    yield "| recipe | equal | ours |"
    yield "|---|---|---|"
    for recipe in TEXTS:
        cells = chosen(recipe)
        told = [
            "; ".join(f"`{key}` {_shown(its.value)}" for key, its in cells.items() if its.mark == mark) or "—"
            for mark in ("paper", "ours")
        ]
        yield f"| `data/{recipe}.yaml` | {' | '.join(told)} |"


def with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
