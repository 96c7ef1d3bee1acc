"""TensorBoard events of a run: the only file that knows TensorBoard."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from megaslm.observe.records import Record, StepRecord


class TensorBoard:
    """Writes records as scalars, against the step."""

    def __init__(self, folder: Path, *, last_step: int) -> None:
        """Opens a new event file; what an interrupted run wrote after `last_step` is hidden."""
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else 0)

    def write(self, records: list[Record]) -> None:
        """Adds the records' scalars."""
        for record in records:
            for tag, value in _scalars(record).items():
                self._writer.add_scalar(tag, value, record.step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _scalars(record: Record) -> dict[str, float]:
    if isinstance(record, StepRecord):
        scalars = {
            "train/loss_selected": record.loss,
            "train/loss_all": record.all_loss,
            "train/selected_ratio": record.selected_ratio,
            "train/learning_rate": record.learning_rate,
            "train/gradient_norm": record.gradient_norm,
            "train/tokens": record.tokens,
            "speed/tokens_per_second": record.tokens_per_second,
            "selection/threshold": record.threshold,
            **{f"selection/excess_{name}": value for name, value in record.excess_quantiles.items()},
            **{f"selection_ratio/{domain}": ratio for domain, ratio in record.domain_ratio.items()},
            **{f"domain_tokens/{domain}": tokens for domain, tokens in record.domain_tokens.items()},
            **{f"domain_passes/{domain}": passes for domain, passes in record.domain_passes.items()},
        }
        return {tag: value for tag, value in scalars.items() if value is not None}
    place = f"{record.name}/{record.domain}"
    return {f"validation_loss/{place}": record.loss, f"validation_perplexity/{place}": record.perplexity}
