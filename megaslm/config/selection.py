"""The settings of how targets are selected by a criterion, and which settings of a selection go together."""

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from megaslm.config.section import NonNegative, Section
from megaslm.config.weighting import OWN_VALUES

if TYPE_CHECKING:
    from megaslm.config.schema import SlmSection

# With nine decimal places k·N stays exact in 64 bits for a billion targets per step.
Ratio = Annotated[Decimal, Field(gt=0, le=1, decimal_places=9)]


class KeepRatioPoint(Section):
    """A point of the schedule of `keep_ratio`."""

    tokens: NonNegative
    """Targets read before."""
    keep_ratio: Ratio
    """The share there."""


class PolicySettings(Section):
    """How targets are selected by a criterion."""

    keep_ratio_schedule: tuple[KeepRatioPoint, ...] = ()
    """Points between which the share of targets is linear. Their tokens rise, and equal ones make a jump. The last
    point has `keep_ratio`. Excludes `keep_ratio_warmup_tokens`."""
    keep_ratio_of_domains: dict[str, Ratio] = Field(default_factory=dict)
    """The share of targets by domain. Each domain of a step is then sorted on its own; one that is not named here has
    `keep_ratio`. Domains of a stream with several are named STREAM/DOMAIN."""
    policy: Literal["top", "band", "stochastic", "threshold", "dataset"] = "top"
    """Which targets are selected by the criterion. top: the share `keep_ratio` of largest value. band: the share
    `keep_ratio` that follows the share `skip_ratio` of largest value. stochastic: the share `keep_ratio`, drawn in
    proportion to exp(value / `temperature`). threshold: all whose value is at least `threshold`. dataset: the share
    `keep_ratio` of the whole data set, by criterion reference; its scores.json gives the threshold."""
    skip_ratio: Annotated[Decimal, Field(gt=0, lt=1, decimal_places=9)] = Decimal("0.1")
    """Under policy band: the share of targets that is left out because its values are largest."""
    temperature: Annotated[float, Field(ge=1e-3)] = 1.0
    """Under policy stochastic, in nats. A low one selects nearly the top, a high one nearly at random."""
    threshold: float | None = None
    """Under policy threshold: the smallest value of a selected target, in nats. It decides how many are selected;
    `keep_ratio` has no effect. Policy dataset sets it at the start, and config.yaml of the run holds it."""

    @property
    def has_fixed_threshold(self) -> bool:
        """Whether a value decides what is selected, so that the number selected varies from step to step."""
        return self.policy in ("threshold", "dataset")


def selection_problem(slm: "SlmSection") -> str | None:
    """Why settings of a selection do not go together; None where they do."""
    if slm.granularity != "token" and slm.criterion in ("random", "selected"):
        return (
            f"granularity {slm.granularity} has no meaning under criterion {slm.criterion}; use granularity token, or "
            "another criterion"
        )
    if slm.mode == "running" and slm.sorts_by_entropy:
        return f"mode running has the threshold of losses; found criterion {slm.criterion}: use mode exact"
    if slm.mode == "running" and (slm.scope != "batch" or not slm.sorts_by_model):
        return (
            "mode running needs scope batch and a criterion by the model's loss, such as excess or loss; found scope "
            f"{slm.scope} and criterion {slm.criterion}, whose choice is exact in one pass: use mode exact"
        )
    return _schedule_problem(slm) or _domains_problem(slm) or _policy_problem(slm) or _weight_problem(slm)


def _domains_problem(slm: "SlmSection") -> str | None:
    if not slm.keep_ratio_of_domains:
        return None
    if slm.scope != "batch" or slm.mode != "exact":
        return (
            f"keep_ratio_of_domains needs scope batch and mode exact; found scope {slm.scope} and mode {slm.mode}: "
            "change them, or remove keep_ratio_of_domains"
        )
    if slm.has_fixed_threshold:
        return f"policy {slm.policy} has one threshold for all domains; remove keep_ratio_of_domains"
    return None


def _schedule_problem(slm: "SlmSection") -> str | None:
    points = slm.keep_ratio_schedule
    if not points:
        return None
    if slm.keep_ratio_warmup_tokens:
        return f"keep_ratio_warmup_tokens = {slm.keep_ratio_warmup_tokens} beside a keep_ratio_schedule; set only one"
    if points[-1].keep_ratio != slm.keep_ratio:
        return (
            f"keep_ratio = {slm.keep_ratio} is not that of the last point of keep_ratio_schedule, "
            f"{points[-1].keep_ratio}; make them equal"
        )
    falling = [(one.tokens, other.tokens) for one, other in pairwise(points) if other.tokens < one.tokens]
    if falling:
        return f"the tokens of keep_ratio_schedule must rise; found {falling[0][1]} after {falling[0][0]}"
    return None


def _policy_problem(slm: "SlmSection") -> str | None:
    policy, threshold = slm.policy, slm.threshold
    if policy != "dataset" and (policy == "threshold") != (threshold is not None):
        found = "null" if threshold is None else threshold
        return f"policy threshold needs a threshold, and no other policy has one; found {found} under policy {policy}"
    if policy == "top":
        return None
    if slm.criterion in ("random", "reference_and_entropy", "selected"):
        return f"policy {policy} has no meaning under criterion {slm.criterion}; use policy top, or another criterion"
    if slm.mode == "running":
        return f"mode running has the threshold of a top; found policy {policy}: use mode exact"
    largest = max((slm.keep_ratio, *slm.keep_ratio_of_domains.values()))
    if policy == "band" and slm.skip_ratio + largest > 1:
        return (
            f"policy band leaves out skip_ratio = {slm.skip_ratio} and selects keep_ratio = {largest}, together more "
            "than 1; lower one of them"
        )
    if policy == "stochastic" and slm.granularity != "token":
        return f"policy stochastic draws single targets; found granularity {slm.granularity}: use granularity token"
    if slm.has_fixed_threshold and slm.scope != "batch":
        return f"policy {policy} selects the same targets in every scope; found scope {slm.scope}: use scope batch"
    if slm.has_fixed_threshold and (slm.keep_ratio_warmup_tokens or slm.keep_ratio_schedule):
        return (
            f"policy {policy} has one threshold for all steps; remove keep_ratio_warmup_tokens and keep_ratio_schedule"
        )
    if policy == "dataset" and (slm.criterion != "reference" or slm.granularity != "token"):
        return (
            "policy dataset sorts by the losses of single targets that scores.json counts; found criterion "
            f"{slm.criterion} and granularity {slm.granularity}: use criterion reference and granularity token"
        )
    return None


def _weight_problem(slm: "SlmSection") -> str | None:
    may_leave_out = slm.max_ref_loss is not None or slm.has_fixed_threshold or slm.criterion == "selected"
    keeps_all = slm.keep_ratio == 1 and not may_leave_out and not slm.keep_ratio_of_domains
    has_own_value = slm.criterion in OWN_VALUES or (slm.expression is not None and not slm.sorts_by_entropy)
    has_own_value = has_own_value and slm.granularity == "token"
    found = f"found criterion {slm.criterion} and granularity {slm.granularity}"
    return slm.weight.misfit(found, has_own_value=has_own_value, keeps_all=keeps_all) or slm.distill.misfit(
        slm, keeps_all=keeps_all
    )
