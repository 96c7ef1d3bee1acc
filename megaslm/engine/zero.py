"""DeepSpeed ZeRO: the only file that knows it. The rest of MegaSLM sees an engine that steps, saves and loads."""

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch

# Without a GPU DeepSpeed would warn that it has found none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
from deepspeed.ops import __compatible_ops__ as compatible_ops
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from megaslm.config.schema import TrainSection
from megaslm.errors import CheckpointError, ModelError
from megaslm.model.load import parameter_count, whole_size
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Choice

# DeepSpeed would compile a shared-memory all-reduce for CPUs at start-up, with a compiler that a user need not have,
# and leave its segments behind; gloo does the same work.
compatible_ops["deepspeed_shm_comm"] = False
# torch 2.13 warns DeepSpeed at every collective of a new name for it.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


class ZeroSharding:
    """How a model is divided over ranks while it is built, from DeepSpeed's settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Under stage 3 every model that transformers builds from now on, while this object lives, is divided."""
        self.divides_parameters = settings["zero_optimization"]["stage"] == 3
        deepspeed.init_distributed()
        # transformers holds only a weak reference, and looks at it in from_pretrained and from_config.
        self._announced = HfDeepSpeedConfig(dict(settings)) if self.divides_parameters else None

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        """Within the context the parameters are whole, and what the first rank writes reaches all ranks."""
        if not self.divides_parameters:
            return nullcontext()
        return cast(
            AbstractContextManager[object], deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)
        )


@dataclass(frozen=True)
class ParameterGroups:
    """AdamW's two groups: matrices decay, gains and biases do not."""

    decayed: list[nn.Parameter]
    undecayed: list[nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module) -> "ParameterGroups":
        """Sorts every parameter of the model into one of the groups.

        Raises:
            ModelError: the groups do not hold every parameter of the model exactly once.
        """
        parameters = list(model.parameters())
        groups = cls(
            decayed=[parameter for parameter in parameters if len(whole_size(parameter)) >= 2],
            undecayed=[parameter for parameter in parameters if len(whole_size(parameter)) < 2],
        )
        grouped = sum(whole_size(parameter).numel() for parameter in groups.decayed + groups.undecayed)
        if grouped != parameter_count(model):
            raise ModelError(f"the optimiser groups hold {grouped} of the model's {parameter_count(model)} parameters")
        return groups


def adamw(model: nn.Module, settings: Mapping[str, Any], train: TrainSection) -> torch.optim.AdamW:
    """AdamW on the model's two decay groups."""
    groups = ParameterGroups.of(model)
    return torch.optim.AdamW(
        [
            {"params": groups.decayed, "weight_decay": train.weight_decay},
            {"params": groups.undecayed, "weight_decay": 0.0},
        ],
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=_optimizer_is_on_gpu(settings),
    )


class ZeroEngine:
    """A model and its optimiser under DeepSpeed."""

    def __init__(self, model: SelectiveLM, settings: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Hands the model and its optimiser over to DeepSpeed; the learning rate is set at each step."""
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))

    def forward(self, tokens: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """The differentiable sum of the chosen losses and all losses; see `SelectiveLM.forward`."""
        return cast(tuple[Tensor, Tensor], self._engine(tokens, choice))

    def measure(self, tokens: Tensor) -> Tensor:
        """The (B, L) losses of a micro-batch without gradients; called on all ranks equally often."""
        with torch.no_grad():
            return cast(Tensor, self._engine(tokens))

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a loss; DeepSpeed averages it over micro-steps and ranks."""
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        """Ends a micro-step; after the last of an optimiser step, clips and updates."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()

    def gradient_norm(self) -> Tensor | float:
        """The global norm of the last step's gradient before clipping."""
        norm = self._engine.get_global_grad_norm()
        return 0.0 if norm is None else norm

    def evaluating(self) -> AbstractContextManager[None]:
        """Within the context the model is in evaluation mode."""
        return _EvaluationMode(self._engine)

    def save(self, folder: Path) -> None:
        """Writes model and optimiser state into `folder`; called on all ranks."""
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load(self, folder: Path) -> None:
        """Reads back what `save` wrote on equally many ranks; called on all ranks.

        Raises:
            CheckpointError: it was written on another number of ranks, or cannot be read.
        """
        try:
            path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        except deepspeed.runtime.zero.utils.ZeRORuntimeException as error:
            raise CheckpointError(f"{folder}: {error}") from error
        if path is None:
            raise CheckpointError(f"{folder}: DeepSpeed finds no checkpoint of this run's ranks in it")


class _EvaluationMode(AbstractContextManager[None]):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.eval()

    def __exit__(self, *_: object) -> None:
        self._engine.train()


def consolidated_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The whole model's weights of a checkpoint, in float32 on the host, from the files of all ranks.

    The files are DeepSpeed's own and are unpickled: read checkpoints of your own runs only.
    """
    if any(checkpoint.glob("*_optim_states.pt")):
        # DeepSpeed's converter tells its story on both streams; what goes wrong it raises.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        return cast(dict[str, Tensor], weights)
    states = checkpoint / "mp_rank_00_model_states.pt"
    if not states.is_file():
        raise CheckpointError(f"{checkpoint}: holds no model states of DeepSpeed")
    return cast(dict[str, Tensor], torch.load(states, map_location="cpu", weights_only=False)["module"])


def _optimizer_is_on_gpu(settings: Mapping[str, Any]) -> bool:
    return torch.cuda.is_available() and "offload_optimizer" not in settings["zero_optimization"]
