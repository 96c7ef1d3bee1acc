"""Everything that MegaSLM raises on purpose.

A message names the thing, what was found, what was expected and what to do. `UserMistake` and its children mean that
the command was asked for something impossible (exit status 2); `Stopped` that it was told to stop (75); the others are
faults (exit status 1).
"""

from pathlib import Path

PREPARE_AGAIN = "remove the dataset and prepare (or score) it again"


class MegaSLMError(Exception):
    """The root of all errors raised on purpose."""

    exit_status = 1
    is_known_to_all_ranks = False
    """Whether every rank raises the same, so that one of them says it for all."""


class UserMistake(MegaSLMError):
    """The command, its files or its data ask for something impossible; nothing was changed."""

    exit_status = 2


class ConfigError(UserMistake):
    """A configuration file, a recipe or an override is wrong."""

    is_known_to_all_ranks = True


class LaunchError(UserMistake):
    """The environment makes the process a rank of a job, but in part only."""


class PreflightError(UserMistake):
    """Ranks do not run the same code on the same job, or their hosts lack what it needs."""

    is_known_to_all_ranks = True


class DataError(UserMistake):
    """A dataset, a corpus or a tokenizer is missing, corrupt or does not fit."""


class ReferenceMismatch(DataError):
    """Stored reference losses are not those of the named reference on the named rows."""


class ModelError(UserMistake):
    """A model folder is missing, incomplete or does not fit the run."""


class CheckpointError(UserMistake):
    """A checkpoint is missing, corrupt or of another run."""

    is_known_to_all_ranks = True


class SaveFailed(MegaSLMError):
    """Checkpoints cannot be written any more."""

    is_known_to_all_ranks = True


class LossSpike(MegaSLMError):
    """The loss rose far above what it was."""

    is_known_to_all_ranks = True


class NonFiniteLoss(MegaSLMError):
    """A loss or a criterion became NaN or infinite."""

    is_known_to_all_ranks = True


class NonFiniteCriterion(MegaSLMError):
    """Targets cannot be ranked: their criterion is NaN or infinite."""

    def __init__(self, places: list[int]) -> None:
        """Names the targets by their places in the call; none where they are another rank's."""
        super().__init__(f"the criterion of the targets {places} is NaN or infinite")
        self.places = places


class Stopped(MegaSLMError):
    """The process was told to stop, and did; it may be started again."""

    exit_status = 75
    is_known_to_all_ranks = True


class PeerFailed(MegaSLMError):
    """Another rank failed and has said why; this one only follows."""

    def __init__(self, message: str, exit_status: int) -> None:
        """Ends with the exit status of the rank that failed."""
        super().__init__(message)
        self.exit_status = exit_status


class CorruptData(DataError):
    """A file of a dataset is missing, or is not what was written."""

    def __init__(self, path: Path, finding: str) -> None:
        """`finding` goes on after the path: what was found, and what was expected."""
        super().__init__(f"{path} {finding}; {PREPARE_AGAIN}")
        self.path = path
        self.finding = finding
