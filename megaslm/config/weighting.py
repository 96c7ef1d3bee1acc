"""The settings of `slm.weight` and `slm.distill`: how much a target counts, and what else it is drawn to."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.section import AboveZero, Section

OWN_VALUES = ("excess", "loss", "reference", "entropy")
"""The criteria by which a target has a value of its own."""
WeightName = Literal["hard", "sigmoid", "probability", "entropy", "signed", "column"]


class WeightSection(Section):
    """Weights of targets. The sum of the weighted losses is divided by the number of selected targets."""

    by: WeightName = "hard"
    """hard: each selected target counts once. sigmoid: 1 / (1 + exp(−(value − center_nats) / temperature)), with the
    target's own value of the criterion. probability: p^power, with p the model's probability of the target (DFT).
    entropy: (H / ln K)^power, with H the entropy of the K = top_tokens most likely tokens (EAFT). signed: 1 for
    selected targets, −negative for the other valid ones. column: the dataset's column `weight`."""
    temperature: AboveZero | None = None
    """Under sigmoid, required: the width of the step from 0 to 1, in nats."""
    center_nats: float = 0.0
    """Under sigmoid: the value of the criterion whose weight is 1/2."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """Under probability and entropy: the exponent. At 0 every weight is 1."""
    top_tokens: Annotated[int, Field(ge=2)] = 20
    """Under entropy: how many of the most likely tokens the entropy is computed over."""
    negative: Annotated[float, Field(gt=0, le=1)] | None = None
    """Under signed, required: the weight of unselected targets without its sign. Their loss is raised."""
    bound_nats: AboveZero | None = None
    """Under signed, required: a target of negative weight whose loss has reached it counts 0, so that the loss has a
    lower bound. Under column, it is needed where the column holds negative numbers."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "WeightSection":
        needed = {"sigmoid": ("temperature",), "signed": ("negative", "bound_nats")}.get(self.by, ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"by {self.by} needs {' and '.join(missing)}; found null: set a number above 0")
        return self

    @model_validator(mode="after")
    def _has_nothing_else(self) -> "WeightSection":
        used = {
            "sigmoid": {"temperature", "center_nats"},
            "probability": {"power"},
            "entropy": {"power", "top_tokens"},
            "signed": {"negative", "bound_nats"},
            "column": {"bound_nats"},
        }.get(self.by, set())
        fields = type(self).model_fields
        unused = [
            name
            for name, field in fields.items()
            if name != "by" and name not in used and getattr(self, name) != field.default
        ]
        if unused:
            raise ValueError(f"by {self.by} has no use for {' and '.join(unused)}; leave it out, or change by")
        return self

    def misfit(self, found: str, *, has_own_value: bool, keeps_all: bool) -> str | None:
        """Why the weights have no meaning beside a selection rule, that is `found`; None where they have one.

        `has_own_value`: whether the rule gives each target a value of its own. `keeps_all`: whether it selects all.
        """
        if self.by == "sigmoid" and not has_own_value:
            return (
                f"weight.by sigmoid weighs a target by its own value; {found}: use granularity token and one of "
                f"{', '.join(OWN_VALUES)}, or an expression without entropy"
            )
        if self.by == "signed" and keeps_all:
            return (
                "weight.by signed has no unselected target to unlearn under keep_ratio 1; lower keep_ratio, or use "
                "weight.by hard"
            )
        return None


class DistillSection(Section):
    """Distillation from the most likely tokens that `megaslm score --top-logits` has stored. The loss of a target is
    (1 − weight) times its cross-entropy plus weight · temperature² times the divergence of the model's prediction from
    the stored one, both raised to the power 1 / temperature."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the divergence. At 0 there is none, and the dataset needs no such columns."""
    temperature: AboveZero = 1.0
    """Above 1 small probabilities count more."""
    on: Literal["selected", "unselected"] = "selected"
    """The targets that have a divergence. unselected: selected targets have their cross-entropy alone, the other valid
    ones weight · temperature² times the divergence alone. With columns of the start model, that holds them where they
    were."""

    def misfit(self, weight_by: WeightName, *, keeps_all: bool) -> str | None:
        """Why distillation has no meaning beside other settings; None where it has one."""
        if self.weight == 0:
            return None
        if weight_by != "hard":
            return (
                f"distill.weight = {self.weight:g} mixes the losses of targets that count equally; found weight.by "
                f"{weight_by}: use weight.by hard, or distill.weight 0"
            )
        if self.on == "unselected" and keeps_all:
            return "distill.on unselected has no target under keep_ratio 1; lower it, or use distill.on selected"
        return None
