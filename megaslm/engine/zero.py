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
from megaslm.engine.fixed_order import fixed_order
from megaslm.engine.training_state import TrainingState
from megaslm.errors import ModelError
from megaslm.model.decoder_layers import decoder_layers
from megaslm.model.decoding import DecodingStep, decoding_attention
from megaslm.model.load import parameter_count, whole_size
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Choice, Deferred, HeadOutput
from megaslm.slm.measure import LOSSES, Measure, Measured

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

    def __init__(
        self,
        model: SelectiveLM,
        settings: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        *,
        deterministic: bool = False,
    ) -> None:
        """Hands the model and its optimiser over to DeepSpeed. The learning rate is set at each step.

        Under stage 3 a decoder layer is gathered as a whole. So no hook runs inside of it, neither in compiled code nor
        in a recomputation. With `deterministic` backward passes run within `fixed_order`.
        """
        self._order = fixed_order if deterministic else nullcontext
        for layer in decoder_layers(model.lm):
            set_z3_leaf_module(layer, True)
        self.model = model
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))
        self._divides_nothing = self._engine.zero_optimization_stage() == 0
        self._undivided_norm: Tensor | float = 0.0
        self._deferral = _Deferral(self._engine)
        self._is_deferred = False
        if self._divides_nothing:
            optimizer.register_step_pre_hook(_pass_over_overflow)

    def forward(self, tokens: Tensor, choice: Choice | Deferred, document_bounds: Tensor | None = None) -> HeadOutput:
        """The chosen losses of (B, L+1) tokens, for (B, L) targets; see `SelectiveLM.forward`."""
        self._is_deferred = isinstance(choice, Deferred)
        if self._is_deferred:
            self._deferral.before_forward()
        return cast(HeadOutput, self._engine(tokens, choice, document_bounds))

    def measure(self, tokens: Tensor, document_bounds: Tensor | None = None, what: Measure = LOSSES) -> Measured:
        """What is measured of a micro-batch without gradients; called equally often on all ranks."""
        with torch.no_grad():
            return cast(Measured, self._engine(tokens, what, document_bounds))

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
        if self._is_deferred:
            self._deferral.before_backward()
        with self._order():
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


class _Deferral:
    """What DeepSpeed must be told where the forward passes of a step come before all of its backward passes.

    DeepSpeed 0.19 prepares its hooks for one backward pass in each forward pass. The other backward passes need the
    same state. Without it, under stage 3, the gradient of a second backward pass would replace the first one's, and the
    layers' weights would stay gathered until its end.

    Stage 3 gathers weights ahead of their use, by a record of the order of modules from one forward pass to the next.
    It gathers nothing ahead in a pass that continues beyond the record. Where it has no valid record it makes one in
    the first forward pass, which would always be too short. So the record is begun anew before the last one: then it
    holds all backward passes, and each forward pass is its beginning.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._divides_parameters = engine.zero_optimization_stage() == 3
        self._passes_per_step = engine.gradient_accumulation_steps()
        self._passes = 0
        self._is_too_short = False
        self._awaited: dict[Any, int] | None = None

    def before_forward(self) -> None:
        """To be called before each deferred forward pass."""
        self._awaited = None
        if not self._divides_parameters:
            return
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        if self._passes == 0:
            self._is_too_short = coordinator.is_invalid_trace()
        self._passes = (self._passes + 1) % self._passes_per_step
        if self._is_too_short and self._passes == 0 and not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def before_backward(self) -> None:
        """To be called before each backward pass. Changes nothing if it is the first one after a forward pass."""
        if self._awaited is None:
            modules = self._engine.module.modules()
            self._awaited = {each: each.ds_grads_remaining for each in modules if hasattr(each, "ds_grads_remaining")}
            return
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "clear_backward_seen_flag"):
            optimizer.clear_backward_seen_flag()
        for module, gradients in self._awaited.items():
            module.ds_grads_remaining = gradients


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
