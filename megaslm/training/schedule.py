"""The learning rate over a run, in targets read."""

import math

from megaslm.config.schema import TrainSection


def learning_rate(train: TrainSection, tokens: int) -> float:
    """The learning rate of the step that ends when `tokens` targets have been read.

    Rises linearly to `lr` over `warmup_tokens`, then follows `schedule` down to `lr · min_lr_ratio` at `total_tokens`.
    """
    if tokens < train.warmup_tokens:
        return train.lr * tokens / train.warmup_tokens
    floor = train.lr * train.min_lr_ratio
    return floor + (train.lr - floor) * _height(train, tokens)


def _height(train: TrainSection, tokens: int) -> float:
    """How high above the floor, from 1 after the warm-up to 0 at the end; constant stays at 1."""
    if train.schedule == "constant":
        return 1.0
    remaining_tokens = max(0, train.total_tokens - tokens)
    if train.schedule == "wsd":
        return min(1.0, remaining_tokens / train.decay_tokens)
    progress = 1.0 - remaining_tokens / (train.total_tokens - train.warmup_tokens)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
