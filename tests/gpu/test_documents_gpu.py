"""On a GPU attention within documents is FlashAttention's, without a mask, without a wait and in one compiled graph."""

import pytest
import torch
from torch import Tensor

from megaslm.config.schema import Architecture
from megaslm.dataset.packing import document_bounds
from megaslm.model.attention.operator import document_attention
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.choice import Every, HeadOutput
from tests.masked import masked_attention
from tests.toy import EOS_ID, SHAPE, Unsharded
from tests.waits import when_the_host_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none"),
]

LENGTHS = (1, 1, 130, 0, 64, 7, 300, 9)
LONGEST = 300
HEAD_SIZE = 64


def tensors(lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Query, key and value with four heads and two of keys, and the documents' bounds, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = [
        torch.randn(sum(lengths), heads, HEAD_SIZE, generator=generator, device="cuda").to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]
    return drawn, torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)


@pytest.mark.parametrize("window", [None, 1, 50, 200])
def test_results_and_gradients_are_those_of_a_mask(window: int | None) -> None:
    drawn, bounds = tensors(LENGTHS, torch.bfloat16)
    output, logsumexp = document_attention(*drawn, bounds, LONGEST, window, 0.2)
    gradient = torch.randn(output.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    found = [output, logsumexp, *torch.autograd.grad(output, drawn, gradient.bfloat16())]

    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in drawn]
    output, logsumexp = masked_attention(*exact, bounds.cpu(), LONGEST, window, 0.2)
    expected = [output, logsumexp, *torch.autograd.grad(output, exact, gradient.bfloat16().double().cpu())]
    for ours, definition in zip(found, expected, strict=True):
        assert ours.shape == definition.shape
        assert (ours.double().cpu() - definition).norm() <= 0.02 * (1.0 + definition.norm())


def test_a_document_has_the_same_bits_whatever_else_is_in_the_batch() -> None:
    drawn, bounds = tensors(LENGTHS, torch.bfloat16)
    alone, its_bounds = [tensor[:132] for tensor in drawn], bounds[:4]
    together, _ = document_attention(*drawn, bounds, LONGEST, None, 0.2)
    apart, _ = document_attention(*alone, its_bounds, LONGEST, None, 0.2)
    assert torch.equal(together[:132], apart)


def test_gradients_are_the_same_bits_each_time_if_torch_is_told_so() -> None:
    drawn, bounds = tensors((3000,), torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        once, again = (
            torch.autograd.grad(document_attention(*drawn, bounds, 3000, None, 0.2)[0].sum(), drawn) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one, other)


def model(dtype: torch.dtype) -> SelectiveLM:
    """Its heads are of 8."""
    lm = build_from_shape(Architecture.model_validate(SHAPE), eos_id=EOS_ID, dtype=dtype)
    draw_weights(lm, seed=0, standard_deviation=0.3, sharding=Unsharded())
    return SelectiveLM(lm.to("cuda"), eos_id=EOS_ID, document_isolation=True)


def rows(seed: int, eos_share: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 60, (2, 33), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < eos_share] = EOS_ID
    return tokens


def test_float32_has_the_losses_of_a_cpu() -> None:
    """FlashAttention does not compute in float32; there documents are isolated by a mask."""
    ours = model(torch.float32)
    on_gpu = ours.measure(rows(0)).losses.cpu()
    on_cpu = ours.to("cpu").measure(rows(0)).losses
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


def test_neither_measuring_nor_training_waits_for_documents() -> None:
    ours = model(torch.bfloat16)
    every = Every(torch.ones(64, dtype=torch.bool, device="cuda"))
    tokens = rows(0).pin_memory()
    bounds = torch.from_numpy(document_bounds(tokens[:, :-1].numpy(), EOS_ID)).pin_memory()

    def run() -> None:
        ours.measure(tokens)
        on_gpu = tokens.to("cuda", non_blocking=True)
        output = ours(on_gpu, every, bounds.to("cuda", non_blocking=True))
        assert isinstance(output, HeadOutput)
        output.total.backward()

    run()
    torch.cuda.synchronize()
    with when_the_host_waits("error"):
        run()


def test_one_compiled_layer_serves_any_number_of_documents() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    ours = model(torch.bfloat16)
    for layer in ours.lm.model.layers:
        layer.compile(backend=keep, dynamic=False, fullgraph=True)
    for number in range(50):
        ours.measure(rows(number, eos_share=number / 50))
    assert len(graphs) == 1
