"""A run's configuration, as viewers and readers of a run are told of it."""

from dataclasses import dataclass

from megaslm.config.schema import RunConfig

Scalar = bool | int | float | str


@dataclass(frozen=True)
class RunDescription:
    """The configuration of a run."""

    text: str
    """The resolved configuration, in YAML."""
    settings: dict[str, Scalar]
    """The settings that shape what is learned, by dotted key."""


def objective_in_words(config: RunConfig) -> str:
    """What is trained on: all tokens (clm), some of them by a criterion (slm), or the assistant's (sft)."""
    slm = config.slm
    if config.train.objective != "slm":
        return config.train.objective
    weight = "" if slm.weight.by == "hard" else f" · weight {slm.weight.by}"
    if slm.distills:
        weight = f" · distill {slm.distill.weight:g} on {slm.distill.on}"
    kept = f"keep_ratio {slm.keep_ratio}"
    of_policy = {
        "top": kept,
        "band": f"{kept} after skip_ratio {slm.skip_ratio}",
        "stochastic": f"{kept} at temperature {slm.temperature}",
        "threshold": f"threshold {slm.threshold}",
        "dataset": f"{kept} of the data set, threshold {slm.threshold},",
    }
    return f"slm · {of_policy[slm.policy]} by {slm.criterion} · scope {slm.scope} · mode {slm.mode}{weight}"


def model_in_words(config: RunConfig) -> str:
    """What the run started from."""
    model = config.model
    if model.from_pretrained is not None:
        return f"from_pretrained {model.from_pretrained}"
    return f"from_run {model.from_run}" if model.from_run is not None else "from_scratch"


def datasets_in_words(config: RunConfig) -> tuple[str, ...]:
    """The datasets that it reads, those of streams after their names."""
    if config.data.train is not None:
        return (str(config.data.train),)
    return tuple(f"{name}: {stream.dataset}" for name, stream in config.data.streams.items())
