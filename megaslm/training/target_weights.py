"""The weights of targets in a run, from its configuration."""

from functools import partial

import torch

from megaslm.config.schema import RunConfig
from megaslm.config.selection import SlmSection
from megaslm.slm.criterion import formula_of
from megaslm.slm.distillation import DistilledWeights
from megaslm.slm.weights import (
    ColumnWeights,
    EntropyWeights,
    ProbabilityWeights,
    SigmoidWeights,
    SignedWeights,
    WeightRule,
)
from megaslm.stream.loader import WeightRange
from megaslm.training.selection_rule import criterion_of


def weight_rule(slm: SlmSection) -> WeightRule | None:
    """The weights of targets; None where all are 1."""
    weight, distill = slm.weight, slm.distill
    if slm.distills:
        return partial(DistilledWeights, distill.weight, distill.temperature, distill.on == "unselected")
    match weight.by:
        case "hard":
            return None
        case "probability":
            return lambda _: ProbabilityWeights(weight.power)
        case "entropy":
            return lambda _: EntropyWeights(weight.power, weight.top_tokens)
        case "column":
            return partial(ColumnWeights, weight.bound_nats)
        case "sigmoid":
            assert weight.temperature is not None, "the schema lets no other sigmoid through"
            return partial(SigmoidWeights, formula_of(criterion_of(slm)), weight.temperature, weight.center_nats)
        case "signed":
            assert weight.negative is not None, "the schema lets no other sign through"
            assert weight.bound_nats is not None, "the schema lets no other sign through"
            return partial(SignedWeights, weight.negative, weight.bound_nats)


def weight_range(config: RunConfig) -> WeightRange | None:
    """What the weights of the dataset may be; None where the run does not use them."""
    weight = config.slm.weight
    if config.train.objective != "slm" or weight.by != "column":
        return None
    largest = torch.finfo(torch.float32).max
    return (0.0 if weight.bound_nats is None else -largest), largest
