"""The charts of TensorBoard's Custom Scalars, by the tags of `megaslm.observe.scalars`."""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Lines:
    """A chart with a line for each tag that matches one of the patterns, from its begin on."""

    title: str
    patterns: tuple[str, ...]

    def has_any_of(self, tags: Collection[str]) -> bool:
        """Whether it shows one of the tags."""
        return any(re.match(pattern, tag) for pattern in self.patterns for tag in tags)


@dataclass(frozen=True)
class Band:
    """A chart with the line `middle` in the area between `lower` and `upper`. All three are tags."""

    title: str
    middle: str
    lower: str
    upper: str

    def has_any_of(self, tags: Collection[str]) -> bool:
        """Whether its line and its area are among the tags."""
        return {self.middle, self.lower, self.upper} <= set(tags)


Layout = dict[str, tuple[Lines | Band, ...]]
"""The charts of each category."""

_SELECTION = "Selection"
_KEEP_RATIO = "train/keep_ratio"

LAYOUT: Layout = {
    "Loss": (
        Lines("training loss: selected, unselected, all targets", (r"loss/",)),
        Lines("loss on held-out text", (r"loss_validation/",)),
        Lines("loss on tasks, nats per token", (r"loss_task/",)),
        Lines("answers and choices that are right", (r"accuracy/", r"choice_accuracy/")),
    ),
    "Loss against tokens read": (
        Lines("training loss", (r"loss_vs_tokens/",)),
        Lines("loss on held-out text", (r"loss_validation_vs_tokens/",)),
        Lines("answers that are right", (r"accuracy_vs_tokens/", r"choice_accuracy_vs_tokens/")),
    ),
    _SELECTION: (
        Lines("ratio: asked, selected", (rf"{_KEEP_RATIO}$", r"train/selected_ratio$")),
        Lines("threshold", (r"selection/threshold$",)),
        Lines("weight of a selected target", (r"selection/mean_weight$",)),
        Band("excess loss: 25%, median, 75%", "selection/excess_p50", "selection/excess_p25", "selection/excess_p75"),
        Band("excess loss: 5%, median, 95%", "selection/excess_p50", "selection/excess_p05", "selection/excess_p95"),
        Lines("ratio of each domain", (r"selection_ratio/",)),
        Lines("ratio by position in the row", (r"selection_ratio_by_position/",)),
        Lines("churn on the probe rows", (r"selection/churn$",)),
    ),
    "Optimisation": (
        Lines("gradient norm", (r"train/gradient_norm$",)),
        Lines("learning rate", (r"train/learning_rate$",)),
        Lines("tokens: read, selected", (r"train/tokens$", r"train/selected_tokens$")),
        Lines("skipped steps", (r"guard/skipped_steps$",)),
    ),
    "Speed and memory": (
        Lines("tokens per second", (r"speed/tokens_per_second$",)),
        Lines("model FLOPs utilisation", (r"speed/mfu",)),
        Lines("seconds per step, by phase", (r"step_seconds/",)),
        Lines("slowest rank", (r"speed/slowest_rank_ratio$",)),
        Lines("effective-time ratio", (r"speed/effective_time_ratio$",)),
        Lines("checkpoint, seconds", (r"speed/checkpoint_",)),
        Lines("peak memory, GiB", (r"memory_gib/",)),
    ),
}
"""All charts there are."""


def layout_of(tags: Collection[str]) -> Layout:
    """The charts that show something of a run with these tags, and the categories that have any.

    A run that trains on every target has no share that it is to select, and its ratios are 1 throughout.
    """
    selects = _KEEP_RATIO in tags
    found = {
        title: tuple(chart for chart in charts if chart.has_any_of(tags))
        for title, charts in LAYOUT.items()
        if selects or title != _SELECTION
    }
    return {title: charts for title, charts in found.items() if charts}
