"""The numbers of records by tag: the names under which TensorBoard and other viewers show them."""

from megaslm.observe.records import (
    PaceRecord,
    ProbeRecord,
    Record,
    ReportRecord,
    SaveRecord,
    SkippedRecord,
    StepRecord,
    TaskLossRecord,
    TaskRecord,
    ValidationRecord,
)

_MEANINGS = {
    "loss/selected": "Mean loss of the selected targets, in nats: the training loss. It does not compare with CLM's.",
    "loss/all": "Mean loss of all valid targets, in nats. It compares SLM with CLM.",
    "loss/unselected": "Mean loss of the valid targets that were not selected, in nats.",
    "loss_validation": "Mean loss of all targets of held-out text, in nats.",
    "accuracy": "Share of the task's items that the model in training answers right.",
    "loss_task": "Mean loss per token of the task's written solutions, in nats.",
    "bits_per_byte": "Loss of the task's written solutions in bits per byte.",
    "choice_accuracy": "Share of the task's items whose right choice is the most likely one.",
    "choice_accuracy_per_byte": "Share of the task's items whose right choice is the most likely one per byte.",
    "perplexity": "Perplexity of held-out text: e to the power of its mean loss.",
    "train/selected_ratio": "Selected targets divided by valid ones.",
    "train/keep_ratio": "The share of targets that the step was to select.",
    "train/learning_rate": "Learning rate of the step.",
    "train/gradient_norm": "Global norm of the gradient before clipping.",
    "train/tokens": "Targets read so far, over all ranks.",
    "train/selected_tokens": "Targets trained on so far, over all ranks.",
    "speed/tokens_per_second": "Targets per second since the last report, all ranks together.",
    "speed/slowest_rank_ratio": "Time of the slowest rank for the same work, divided by the median of all ranks.",
    "speed/mfu": "Model FLOPs utilisation, where each token attends to its whole row.",
    "speed/mfu_of_documents": "Model FLOPs utilisation, where each token attends to its own document only.",
    "speed/effective_time_ratio": "Time in steps that count, divided by the time since the run was first started.",
    "speed/checkpoint_seconds": "Seconds from the begin of a save until the checkpoint was complete.",
    "speed/checkpoint_halt_seconds": "Seconds in which training stood still for a save.",
    "step_seconds": "Mean seconds per step of this phase, on the first rank. All phases together are the step.",
    "memory_gib": "The most that the first rank has taken since the start, in GiB.",
    "selection/threshold": "Value of the criterion from which targets were selected.",
    "selection/mean_weight": "Sum of the weights of targets divided by the number of selected ones.",
    "selection/backward_cosine": "Cosine of the exact gradient and the one that leaves tokens out of the upper layers.",
    "selection/churn": "Share of the kept targets of the probe rows that the measurement before did not keep.",
    "selection": "Excess loss, in nats, that this percentage of all valid targets is below.",
    "selection_ratio": "Selected targets of the domain divided by its valid ones.",
    "selection_ratio_by_position": "Selected targets of this part of the row divided by its valid ones.",
    "tokens_of_domain": "Targets of the domain read so far, over all ranks.",
    "passes_of_domain": "How often the rows of the domain were read so far, on average.",
    "guard/skipped_steps": "Skipped steps of the run so far.",
    "selection/excess": "Excess loss of all valid targets of the report, in nats. The outer bins hold all beyond.",
    "selected_text": "The beginning of a probe row; what the run's selection keeps of it is bold.",
    "config": "The resolved configuration.",
}
"""The description of a tag or, where it has none of its own, of its group: the part before the first slash."""
_AGAINST_TOKENS = "_vs_tokens"
_COMPARED_GROUPS = ("loss", "loss_validation", "loss_task", "bits_per_byte", "accuracy", "choice_accuracy")
"""The groups of which they are shown: what runs of different batch sizes are compared by."""
_GIB = 1 << 30
Compared = StepRecord | ValidationRecord | TaskRecord | TaskLossRecord
"""The records that are shown against the tokens read, too."""


def meaning_of(tag: str) -> str:
    """The description of a tag."""
    group, _, rest = tag.partition("/")
    plain = group.removesuffix(_AGAINST_TOKENS)
    return _MEANINGS.get(f"{plain}/{rest}") or _MEANINGS.get(plain, "")


def scalars_of(record: Record) -> dict[str, float]:
    """The numbers of a record by tag, without those that were not measured.

    TensorBoard sorts tags by the part before "/" and opens the first two: losses, answers to tasks if any.
    """
    return {tag: value for tag, value in _all_scalars_of(record).items() if value is not None}


def against_tokens(record: Compared) -> dict[str, float]:
    """The numbers that are shown against the tokens read, by tags of their own: a chart has one axis."""
    by_group = ((tag.partition("/"), value) for tag, value in scalars_of(record).items())
    return {
        f"{group}{_AGAINST_TOKENS}/{rest}": value for (group, _, rest), value in by_group if group in _COMPARED_GROUPS
    }


def _all_scalars_of(record: Record) -> dict[str, float | None]:
    match record:
        case StepRecord():
            return _of_step(record)
        case ReportRecord():
            return _of_report(record)
        case ValidationRecord():
            return {f"loss_validation/{record.place}": record.loss, f"perplexity/{record.place}": record.perplexity}
        case TaskRecord():
            return {f"accuracy/{record.name}": record.accuracy}
        case TaskLossRecord():
            return {
                f"loss_task/{record.name}": record.nats_per_token,
                f"bits_per_byte/{record.name}": record.bits_per_byte,
                f"choice_accuracy/{record.name}": record.choice_accuracy,
                f"choice_accuracy_per_byte/{record.name}": record.choice_accuracy_per_byte,
            }
        case SkippedRecord():
            return {"guard/skipped_steps": record.skipped_steps}
        case PaceRecord():
            return {"speed/slowest_rank_ratio": record.slowest_rank_ratio}
        case SaveRecord():
            return {
                "speed/checkpoint_seconds": record.seconds,
                "speed/checkpoint_halt_seconds": record.halted_seconds,
            }
        case ProbeRecord():
            return {"selection/churn": record.churn}


def _of_step(record: StepRecord) -> dict[str, float | None]:
    return {
        "loss/selected": record.loss,
        "loss/all": record.all_loss,
        "loss/unselected": _unselected_loss(record),
        "train/selected_ratio": record.selected_ratio,
        "train/learning_rate": record.learning_rate,
        "train/gradient_norm": record.gradient_norm,
        "train/tokens": record.tokens,
        "speed/tokens_per_second": record.tokens_per_second,
        "selection/threshold": record.threshold,
        "selection/mean_weight": record.mean_weight,
        "selection/backward_cosine": record.backward_cosine,
        **{f"selection/excess_{name}": value for name, value in record.excess_quantiles.items()},
        **{f"selection_ratio/{domain}": ratio for domain, ratio in record.domain_ratio.items()},
        **{f"tokens_of_domain/{domain}": tokens for domain, tokens in record.domain_tokens.items()},
        **{f"passes_of_domain/{domain}": passes for domain, passes in record.domain_passes.items()},
    }


def _of_report(record: ReportRecord) -> dict[str, float | None]:
    memory = {"device_peak": record.device_memory_bytes, "host_peak": record.host_memory_bytes}
    bands = len(record.position_ratio)
    return {
        "train/keep_ratio": record.keep_ratio,
        "train/selected_tokens": record.selected_tokens,
        "speed/mfu": record.mfu,
        "speed/mfu_of_documents": record.mfu_of_documents,
        "speed/effective_time_ratio": record.effective_time_ratio,
        **{f"step_seconds/{phase}": seconds for phase, seconds in record.phase_seconds.items()},
        **{f"memory_gib/{name}": None if size is None else size / _GIB for name, size in memory.items()},
        **{
            f"selection_ratio_by_position/{band + 1}_of_{bands}": ratio
            for band, ratio in enumerate(record.position_ratio)
        },
    }


def _unselected_loss(record: StepRecord) -> float | None:
    """From the means over all valid targets and over the selected ones. None where every target was selected."""
    if record.all_loss is None or record.selected_ratio == 1:
        return None
    return (record.all_loss - record.selected_ratio * record.loss) / (1 - record.selected_ratio)
