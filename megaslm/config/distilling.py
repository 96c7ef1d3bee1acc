"""The settings of `slm.distill`: whether targets are drawn to the stored predictions of another model."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from megaslm.config.section import AboveZero, Section

if TYPE_CHECKING:
    from megaslm.config.schema import SlmSection


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

    def misfit(self, slm: "SlmSection", *, keeps_all: bool) -> str | None:
        """Why distillation has no meaning beside other settings; None where it has one."""
        if self.weight == 0:
            return None
        if slm.weight.by != "hard":
            return (
                f"distill.weight = {self.weight:g} mixes the losses of targets that count equally; found weight.by "
                f"{slm.weight.by}: use weight.by hard, or distill.weight 0"
            )
        if self.on == "unselected" and keeps_all:
            return "distill.on unselected has no target under keep_ratio 1; lower it, or use distill.on selected"
        return None
