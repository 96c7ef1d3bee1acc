"""DeepSpeed ZeRO: the only file that imports it. The rest of MegaSLM sees an engine with steps.

`training_state` knows the layout of its optimisers.
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch

# Prevents DeepSpeed's warning on hosts without a GPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
from deepspeed.ops import __compatible_ops__ as compatible_ops
from deepspeed.runtime import compiler
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from megaslm.config.schema import TrainSection
from megaslm.engine.training_state import TrainingState
from megaslm.errors import ModelError
from megaslm.model.decoder_layers import decoder_layers
from megaslm.model.decoding import DecodingStep, decoding_attention
from megaslm.model.load import parameter_count, whole_size
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Choice, Deferred, HeadOutput

# DeepSpeed would compile a shared-memory all-reduce for CPUs at start-up, which needs a compiler, and leave segments
# behind. gloo does the same work.
compatible_ops["deepspeed_shm_comm"] = False
# DeepSpeed imports its optimiser Muon whatever the optimiser is, and has torch compile its kernels. That alone imports
# Inductor, for more than a second in each rank, though they never run here.
compiler.compile = lambda: compiler.dummy_decorator
# torch 2.13 warns at each of DeepSpeed's collectives about a renamed function.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


KEEPS_GRAPHS = ("0.19.8",)
"""Versions of DeepSpeed for which tests/ranks/test_kept_graphs.py has passed. In others several forward passes before
their backward passes may silently lose gradients."""


def deepspeed_version() -> str:
    """The installed version, without the mark of a build."""
    return str(deepspeed.__version__).split("+", maxsplit=1)[0]


class ZeroSharding:
    """The division of a model over ranks while it is built, from DeepSpeed's settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Under stage 3, every model that transformers builds while this object lives is divided."""
        self.divides_parameters = settings["zero_optimization"]["stage"] == 3
        deepspeed.init_distributed()
        # transformers keeps only a weak reference, and reads it in from_pretrained and from_config.
        self._announced = HfDeepSpeedConfig(dict(settings)) if self.divides_parameters else None

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
        """Within the context the parameters are whole, and the first rank's writes reach all ranks."""
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
        """Assigns every parameter of the model to one of the groups.

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
        """Hands the model and its optimiser over to DeepSpeed. The learning rate is set at each step.

        Under stage 3 a decoder layer is gathered as a whole. So no hook runs inside of it, neither in compiled code nor
        in a recomputation.
        """
        for layer in decoder_layers(model.lm):
            set_z3_leaf_module(layer, True)
        self.model = model
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))
        self._divides_nothing = self._engine.zero_optimization_stage() == 0
        self._undivided_norm: Tensor | float = 0.0
        self._first_backward = _FirstBackward(self._engine)
        self._divides_parameters = self._engine.zero_optimization_stage() == 3
        self._trace = _Trace(self._engine)
        if self._divides_nothing:
            optimizer.register_step_pre_hook(_pass_over_overflow)

    def forward(self, tokens: Tensor, choice: Choice | Deferred, document_bounds: Tensor | None = None) -> HeadOutput:
        """The chosen losses of (B, L+1) tokens, for (B, L) targets; see `SelectiveLM.forward`."""
        self._first_backward.forget()
        if self._divides_parameters:
            self._trace.before_forward(is_deferred=isinstance(choice, Deferred))
        return cast(HeadOutput, self._engine(tokens, choice, document_bounds))

    def measure(self, tokens: Tensor, document_bounds: Tensor | None = None) -> Tensor:
        """The (B, L) losses of a micro-batch without gradients; called equally often on all ranks."""
        with torch.no_grad():
            return cast(Tensor, self._engine(tokens, None, document_bounds))

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within the context the model is in evaluation mode and continues texts; see `next_logits`."""
        with self.evaluating(), decoding_attention(self._engine.module.lm):
            yield

    def next_logits(self, step: DecodingStep) -> Tensor:
        """(B, V) float32 logits of the tokens that follow each row; called equally often on all ranks."""
        with torch.no_grad():
            return cast(Tensor, self._engine(step))

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a loss; DeepSpeed averages it over micro-steps and ranks.

        Several forward passes may come before their backward passes, in the same order, with a `step` after each.
        """
        self._first_backward.repeat()
        self._engine.backward(loss)

    def step(self, lr: float) -> bool:
        """Ends a micro-step. After the last one of an optimiser step, clips the gradient and updates the weights.

        Returns:
            Whether the update was skipped, on all ranks, because the norm of the gradient is NaN or infinite.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._divides_nothing and self._engine.is_gradient_accumulation_boundary():
            self._look_for_overflow()
        skipped_before = self._engine.skipped_steps
        self._engine.step()
        return self._engine.skipped_steps > skipped_before

    def gradient_norm(self) -> Tensor | float:
        """The global norm of the last step's gradient before clipping."""
        return self._undivided_norm if self._divides_nothing else self._engine.get_global_grad_norm()

    def _look_for_overflow(self) -> None:
        """ZeRO's own check, for stage 0, where DeepSpeed would apply any gradient. All ranks get the same result."""
        optimizer = self._engine.optimizer
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._undivided_norm = nn.utils.get_total_norm(
            [parameter.grad for parameter in parameters if parameter.grad is not None]
        )
        # DeepSpeed counts skipped steps by this attribute, which its own optimisers have.
        optimizer.overflow = not math.isfinite(self._undivided_norm)

    def evaluating(self) -> AbstractContextManager[None]:
        """Within the context the model is in evaluation mode."""
        return _EvaluationMode(self._engine)

    def weight_bytes(self) -> int:
        """What this rank holds of the weights in the precision of the passes, whole ones and parts."""
        held = [getattr(parameter, "ds_tensor", parameter) for parameter in self._engine.module.parameters()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        return sum(storages.values())

    def state(self) -> TrainingState:
        """Weights and moments as this rank holds them."""
        return TrainingState(self._engine.module, self._engine.optimizer)


class _FirstBackward:
    """The state in which DeepSpeed's forward pass leaves its hooks, for backward passes that follow another one.

    DeepSpeed 0.19 prepares for one backward pass in each forward pass. Without that the gradient of a second backward
    pass would replace the first one's under stage 3, and the layers' weights would stay gathered until its end.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._awaited: dict[Any, int] | None = None

    def forget(self) -> None:
        """To be called before each forward pass."""
        self._awaited = None

    def repeat(self) -> None:
        """To be called before each backward pass. Changes nothing if it is the first one after a forward pass."""
        if self._awaited is None:
            self._awaited = {
                module: module.ds_grads_remaining
                for module in self._engine.module.modules()
                if hasattr(module, "ds_grads_remaining")
            }
            return
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "clear_backward_seen_flag"):
            optimizer.clear_backward_seen_flag()
        for module, gradients in self._awaited.items():
            module.ds_grads_remaining = gradients


class _Trace:
    """The order of modules by which stage 3 gathers weights ahead of their use, where forward passes are deferred.

    DeepSpeed 0.19 records from one forward pass to the next, and gathers nothing ahead in a pass that goes on beyond
    the record. Where it has no valid record it makes one in the first forward pass, which would always be too short. So
    the record is begun anew before the last one: then it holds all backward passes, and each forward pass is its
    beginning.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._passes = 0
        self._is_too_short = False

    def before_forward(self, *, is_deferred: bool) -> None:
        """To be called before each forward pass whose backward pass will come."""
        if not is_deferred:
            self._passes = 0
            return
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        passes_per_step = self._engine.gradient_accumulation_steps()
        if self._passes % passes_per_step == 0:
            self._is_too_short = coordinator.is_invalid_trace()
        self._passes += 1
        if self._is_too_short and self._passes % passes_per_step == 0 and not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()


class _EvaluationMode(AbstractContextManager[None]):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.eval()

    def __exit__(self, *_: object) -> None:
        self._engine.train()


def _pass_over_overflow(optimizer: Any, *_: object) -> None:
    """Before an optimiser step: drops gradients that overflowed, so that the step changes nothing."""
    if optimizer.overflow:
        optimizer.zero_grad()


def _optimizer_is_on_gpu(settings: Mapping[str, Any]) -> bool:
    return torch.cuda.is_available() and "offload_optimizer" not in settings["zero_optimization"]
