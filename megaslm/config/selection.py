"""The section `slm`: how targets are selected by a criterion, and which settings of a selection go together."""

from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.expression import OF_MODEL, Criterion, Expression, expression_of
from megaslm.config.section import NonNegative, Positive, Section
from megaslm.config.weighting import OWN_VALUES, DistillSection, WeightSection

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


class SlmSection(PolicySettings):
    """Selective language modeling (Rho-1, section 2.2). Used under `objective: slm` only."""

    keep_ratio: Ratio = Decimal("0.6")
    """The share k of targets to train on, as a decimal."""
    keep_ratio_warmup_tokens: NonNegative = 0
    """Targets over which the share falls linearly from 1 to `keep_ratio`: the shortest schedule."""
    criterion: Criterion = "excess"
    """The value that targets are sorted by, largest first. excess: the model's loss minus the reference's. reference,
    entropy: minus the reference's loss or entropy, known before the forward pass. reference_and_entropy: the
    intersection of these two. selected: the dataset's own mask selects, whatever keep_ratio. loss, student_entropy: the
    model's own loss, or the entropy of its prediction. random is a control. Or an expression, such as `loss -
    ref_loss`: names, numbers, + - * / and parentheses, abs, min and max. It may name the model's `loss` and `entropy`,
    and the dataset's columns: `ref_loss`, `ref_entropy`, `weight`."""
    scope: Literal["batch", "sequence", "microbatch"] = "batch"
    """The targets among which a target is sorted: the whole optimiser step, its row, or one rank's micro-batch."""
    mode: Literal["exact", "running"] = "exact"
    """Under scope batch: exact keeps K targets of each step; with several micro-steps it needs the losses of all of
    them before the first backward pass. running keeps the targets above the threshold of recent steps, K on average."""
    exact_by: Literal["auto", "kept_graphs", "second_pass"] = "auto"
    """How exact gets these losses. kept_graphs keeps the activations of all micro-steps: no more operations than one
    forward pass each, but memory. second_pass runs every forward pass twice. auto keeps graphs where they fit."""
    granularity: Literal["token", "span", "document"] = "token"
    """What a target is sorted by: its own value, or the mean over its span or over its document in the row. Means keep
    or drop text as a whole, which tells noise from text like the reference's."""
    span_reach: Positive = 16
    """Under granularity span: the targets of its document on each side of a target that belong to its span."""
    max_ref_loss: Annotated[float, Field(gt=0)] | None = None
    """Targets with a larger reference loss, in nats, are never selected; null has no limit."""
    measure_unselected: bool = True
    """Whether to compute losses of unselected targets, only to report them, where the criterion does not need them."""
    weight: WeightSection = WeightSection()
    """How much a target counts."""
    backward: Literal["exact", "filtered"] = "exact"
    """Which tokens the backward pass runs through. filtered leaves out of the upper layers those whose targets are not
    selected: an approximation that saves time. Every 50 steps both gradients are computed and compared. Needs
    `model.recompute: full`."""
    filtered_layers: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Under backward filtered: the share of the decoder layers, from the last one down, that leave tokens out."""
    least_cosine: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Under backward filtered: where the cosine of both gradients is smaller, the backward pass is exact until they are
    compared again."""
    distill: DistillSection = DistillSection()
    """Whether targets are drawn to the reference's stored predictions, besides their own tokens."""
    head: Literal["auto", "cache", "bracket", "recompute"] = "auto"
    """How the loss head computes its gradient: cache keeps two bytes per logit, bracket forecasts the threshold,
    recompute computes selected logits twice. auto is cache in bf16 where it fits in `head_cache_gib`, else bracket."""
    head_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Most memory, in GiB, that `head: cache` may hold for one micro-batch."""
    reference: str | None = None
    """The Hugging Face folder of the model that scored `data.train`, where available; only `verify_rows` uses it.
    Streams set their own."""
    verify_rows: NonNegative = 8
    """Rows of each domain to score again before the first step, where a reference is set; 0 trusts the stored
    losses."""

    @property
    def expression(self) -> Expression | None:
        """The criterion if it is an expression."""
        return expression_of(self.criterion)

    @property
    def needs_ref_loss(self) -> bool:
        """Whether the dataset must hold the reference's losses."""
        named = self.criterion in ("excess", "reference", "reference_and_entropy") or self.max_ref_loss is not None
        return named or "ref_loss" in self._names

    @property
    def needs_ref_entropy(self) -> bool:
        """Whether the dataset must hold the entropies of the reference's predictions."""
        return self.criterion in ("entropy", "reference_and_entropy") or "ref_entropy" in self._names

    @property
    def sorts_by_model(self) -> bool:
        """Whether targets are sorted by losses or entropies of the model that is trained."""
        return self.criterion in ("excess", "loss", "student_entropy") or not self._names.isdisjoint(OF_MODEL)

    @property
    def sorts_by_entropy(self) -> bool:
        """Whether targets are sorted by entropies of the model's own predictions."""
        return self.criterion == "student_entropy" or "entropy" in self._names

    @property
    def _names(self) -> frozenset[str]:
        return frozenset() if self.expression is None else self.expression.names

    @property
    def distills(self) -> bool:
        """Whether targets are drawn to the stored predictions of another model."""
        return self.distill.weight > 0

    @property
    def trains_unselected(self) -> bool:
        """Whether targets that are not selected have a gradient, too."""
        return self.weight.by == "signed" or (self.distills and self.distill.on == "unselected")

    @property
    def needs_all_losses(self) -> bool:
        """Whether a step selects by the losses of all its micro-steps, so that several keep graphs or pass twice."""
        return self.sorts_by_model and self.scope == "batch" and self.mode == "exact"

    @model_validator(mode="after")
    def _settings_fit(self) -> "SlmSection":
        if (problem := _problem(self)) is not None:
            raise ValueError(problem)
        return self


def _problem(slm: SlmSection) -> str | None:
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
    if slm.backward == "filtered" and slm.trains_unselected:
        return (
            "backward filtered leaves out what is not selected; weight.by signed and distill.on unselected train it: "
            "use backward exact, or others"
        )
    return _schedule_problem(slm) or _domains_problem(slm) or _policy_problem(slm) or _weight_problem(slm)


def _domains_problem(slm: SlmSection) -> str | None:
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


def _schedule_problem(slm: SlmSection) -> str | None:
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


def _policy_problem(slm: SlmSection) -> str | None:
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


def _weight_problem(slm: SlmSection) -> str | None:
    may_leave_out = slm.max_ref_loss is not None or slm.has_fixed_threshold or slm.criterion == "selected"
    keeps_all = slm.keep_ratio == 1 and not may_leave_out and not slm.keep_ratio_of_domains
    has_own_value = slm.criterion in OWN_VALUES or (slm.expression is not None and not slm.sorts_by_entropy)
    has_own_value = has_own_value and slm.granularity == "token"
    found = f"found criterion {slm.criterion} and granularity {slm.granularity}"
    return slm.weight.misfit(found, has_own_value=has_own_value, keeps_all=keeps_all) or slm.distill.misfit(
        slm.weight.by, keeps_all=keeps_all
    )
