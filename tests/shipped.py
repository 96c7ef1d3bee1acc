"""The runs of configs/, and the targets of their epochs where only a dataset would tell."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    # It has tasks, no runs.
    if "eval" not in path.parts
)
EPOCH_TOKENS = {
    # data/math-curated.yaml, by the estimate of docs/recipes.md.
    "rho-math-1b/reference.yaml": 150_000_000,
    "rho-math-7b/reference.yaml": 150_000_000,
    "rho-general-1b/reference.yaml": 1_900_000_000,
    # 69k trajectories of about 300 tokens.
    "tora/1b.yaml": 20_700_000,
    "tora/7b.yaml": 20_700_000,
}
