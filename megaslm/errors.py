"""All exceptions that MegaSLM raises on purpose.

A message names the thing, what was found, what was expected and what to do. `UserMistake` and its subclasses mean that
the command asks for something impossible (exit status 2). `Stopped` means that the process was told to stop (75). The
others are faults (exit status 1).
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INTERRUPTED = 130
"""The exit status of a process that Ctrl-C ended at once, as of any program that SIGINT ends."""
PREPARE_AGAIN = "remove the dataset and prepare (or score) it again"


class MegaSLMError(Exception):
    """The base class of all exceptions raised on purpose."""

    exit_status = 1
    is_known_to_all_ranks = False
    """Whether every rank raises the same, so that only one of them prints it."""


class UserMistake(MegaSLMError):
    """The command, its files or its data ask for something impossible; nothing was changed."""

    exit_status = 2


class ConfigError(UserMistake):
    """A configuration file, a recipe or an override is wrong."""

    is_known_to_all_ranks = True


class LaunchError(UserMistake):
    """The environment describes a rank of a job only in part."""


class PreflightError(UserMistake):
    """Ranks do not run the same code on the same job, or their hosts lack what it needs."""

    is_known_to_all_ranks = True


class InputError(UserMistake):
    """The inputs of a job are missing or do not fit it, as far as this host sees."""


class DataError(UserMistake):
    """A dataset, a corpus or a tokenizer is missing, corrupt or does not fit."""


class ReferenceMismatch(DataError):
    """Stored reference losses are not those of the named reference on the named rows."""


class ModelError(UserMistake):
    """A model folder is missing, incomplete or does not fit the run."""


class PromptTooLong(DataError):
    """Prompts leave too little of the model's context."""

    def __init__(self, message: str, places: list[int], *, longest_tokens: int, context_tokens: int) -> None:
        """`places`: the indices of these prompts in the call. `longest_tokens`: of the longest one."""
        super().__init__(message)
        self.places, self.longest_tokens, self.context_tokens = places, longest_tokens, context_tokens


class ServerRefused(UserMistake):
    """A completions server answered that the request is wrong."""


class SandboxError(UserMistake):
    """Model-written programs cannot be kept apart on this machine."""


class CheckpointError(UserMistake):
    """A checkpoint is missing, corrupt or of another run."""

    is_known_to_all_ranks = True


class GradingError(MegaSLMError):
    """The process that grades answers cannot work."""


class GenerationFailed(MegaSLMError):
    """A model or a completions server gave no usable completion."""


class SaveFailed(MegaSLMError):
    """Checkpoints cannot be written any more."""

    is_known_to_all_ranks = True


class LossSpike(MegaSLMError):
    """The loss rose far above its recent values."""

    is_known_to_all_ranks = True


class NonFiniteLoss(MegaSLMError):
    """A loss or a criterion became NaN or infinite."""

    is_known_to_all_ranks = True


class NonFiniteCriterion(MegaSLMError):
    """Targets cannot be ranked: their criterion is NaN or infinite."""

    def __init__(self, places: list[int]) -> None:
        """Takes the targets' indices in the call; empty where they are on another rank."""
        super().__init__(f"the criterion of the targets {places} is NaN or infinite")
        self.places = places


class Stopped(MegaSLMError):
    """The process stopped because it was told to; it may be started again."""

    exit_status = 75
    is_known_to_all_ranks = True


class PeerFailed(MegaSLMError):
    """Another rank failed and has reported why; this rank only follows."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class BrokenLibrary(MegaSLMError):
    """A library is installed and cannot be imported."""

    def __init__(self, error: Exception) -> None:
        """`error`: what its import raised."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        self.finding = f"a library cannot be imported ({type(cause).__name__}: {cause})"
        self.remedy = "run `make install`, in a new .venv if that does not help"
        with suppress(PackageNotFoundError):
            # transformers imports it where it is installed. It breaks with every torch but its own.
            found = version("torchvision")
            self.remedy = (
                f"torchvision {found} may not fit torch {version('torch')}, and MegaSLM does not need it: run `pip "
                "uninstall torchvision`"
            )
        super().__init__(f"{self.finding}; {self.remedy}")


class CorruptData(DataError):
    """A file of a dataset is missing or corrupt."""

    def __init__(self, path: Path, finding: str) -> None:
        """`finding` continues the sentence after the path: what was found, and what was expected."""
        super().__init__(f"{path} {finding}; {PREPARE_AGAIN}")
        self.path = path
        self.finding = finding
