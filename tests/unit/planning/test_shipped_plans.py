"""Plans of every file of configs/, by numbers worked out by hand, and the paper's figures."""

import pytest

from megaslm.config.load import load
from megaslm.config.plan import checkpoint_bytes, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.model.shapes import shape_of
from megaslm.model.traced_memory import parameter_counts
from megaslm.planning.machine import machine_of
from megaslm.planning.plan import Plan, Request, make_plan, with_known_length
from tests.shipped import CONFIGS, EPOCH_TOKENS, NAMES


def llama(vocabulary: int, width: int, feed_forward: int, layers: int, key_width: int, *, tied: bool = False) -> int:
    """Embedding and head; of each layer queries and output, keys and values, gate, up and down, two norms; the last
    norm."""
    tables = vocabulary * width * (1 if tied else 2)
    layer = 2 * width * width + 2 * width * key_width + 3 * width * feed_forward + 2 * width
    return tables + layers * layer + width


TINYLLAMA = llama(32_000, 2048, 5632, 22, 256)
MISTRAL = llama(32_000, 4096, 14_336, 32, 1024)
LLAMA_2 = llama(32_000, 4096, 11_008, 32, 4096)
DEMO = llama(4096, 128, 352, 4, 64, tied=True)
TINY_GPU = llama(4096, 512, 1408, 12, 256, tied=True)

BATCH = 1_048_576
OF_15B = 15_000_000_000 // BATCH
# Three epochs of 0.15B and of 1.9B tokens.
OF_REFERENCE, OF_GENERAL_REFERENCE = 3 * (150_000_000 // BATCH), 3 * (1_900_000_000 // BATCH)
EXPECTED: dict[str, tuple[int, int]] = {
    "demo/base.yaml": (DEMO, 50),
    "demo/clm.yaml": (DEMO, 120),
    "demo/reference.yaml": (DEMO, 80),
    "demo/slm.yaml": (DEMO, 120),
    "methods/dft.yaml": (DEMO, 120),
    "methods/distill.yaml": (DEMO, 120),
    "methods/eaft.yaml": (DEMO, 120),
    "methods/entrodrop.yaml": (DEMO, 120),
    "methods/eslm.yaml": (DEMO, 120),
    "methods/se-kd.yaml": (DEMO, 120),
    "methods/soft-slm.yaml": (DEMO, 120),
    "methods/sstoken.yaml": (DEMO, 120),
    "methods/token-cleaning.yaml": (DEMO, 120),
    "methods/unlearning.yaml": (DEMO, 120),
    "rho-general-1b/clm.yaml": (TINYLLAMA, 76_293),
    "rho-general-1b/reference.yaml": (TINYLLAMA, OF_GENERAL_REFERENCE),
    "rho-general-1b/slm.yaml": (TINYLLAMA, 76_293),
    "rho-math-1b/clm-equal-compute.yaml": (TINYLLAMA, 20_450_000_000 // BATCH),
    "rho-math-1b/clm-with-curated.yaml": (TINYLLAMA, OF_15B),
    "rho-math-1b/clm.yaml": (TINYLLAMA, OF_15B),
    "rho-math-1b/ratio-sweep.yaml": (TINYLLAMA, 5_000_000_000 // BATCH),
    "rho-math-1b/reference.yaml": (TINYLLAMA, OF_REFERENCE),
    "rho-math-1b/slm.yaml": (TINYLLAMA, OF_15B),
    "rho-math-7b/clm.yaml": (MISTRAL, OF_15B),
    "rho-math-7b/reference.yaml": (MISTRAL, OF_REFERENCE),
    "rho-math-7b/slm.yaml": (MISTRAL, OF_15B),
    "self-reference-1b/intersection.yaml": (TINYLLAMA, OF_15B),
    "self-reference-1b/low-entropy.yaml": (TINYLLAMA, OF_15B),
    "self-reference-1b/low-loss.yaml": (TINYLLAMA, OF_15B),
    "self-reference-1b/proof-pile.yaml": (TINYLLAMA, 52_452),
    "shapes/mistral-7b.yaml": (MISTRAL, 100),
    "shapes/tinyllama-1b.yaml": (TINYLLAMA, 100),
    "tiny-gpu/clm.yaml": (TINY_GPU, 256),
    "tiny-gpu/slm.yaml": (TINY_GPU, 256),
    "tora/1b.yaml": (TINYLLAMA, 3 * (20_700_000 // 262_144)),
    "tora/7b.yaml": (MISTRAL, 3 * (20_700_000 // 262_144)),
    "weak-to-strong-7b/clm.yaml": (LLAMA_2, OF_15B),
    "weak-to-strong-7b/slm.yaml": (LLAMA_2, OF_15B),
}


def test_the_shapes_are_those_of_the_published_sizes() -> None:
    assert (TINYLLAMA, MISTRAL, LLAMA_2, DEMO) == (1_100_048_384, 7_241_732_096, 6_738_415_616, 1_262_720)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_steps(name: str) -> None:
    parameters, steps = EXPECTED[name]
    config = load(RunConfig, CONFIGS / name).value
    # The run that the demo's others start from is not there yet.
    named = CONFIGS / "demo" / "base.yaml" if config.model.from_run is not None else None
    assert parameter_counts(shape_of(config.model, named).config)[0].total == parameters
    known = with_known_length(config, EPOCH_TOKENS.get(name))
    assert plan_batches(known, 32).total_steps == steps


def planned(name: str, mfu: float) -> Plan:
    return make_plan(CONFIGS / name, (), Request(machine_of("h100-80g", 32), mfu, price=2.0))


def test_a_plan_of_1b_by_hand_and_by_the_paper() -> None:
    plan = planned("rho-math-1b/slm.yaml", 0.25)
    tokens = OF_15B * BATCH
    # Every matrix but the embedding twice, and 22 layers of attention over half of 2,048 tokens.
    forward = 2 * (TINYLLAMA - 32_000 * 2048 - (2 * 22 + 1) * 2048) + 22 * 2 * 2 * 2048 * 1024
    assert plan.flops_per_token == 3 * forward
    hours = tokens * 3 * forward / (32 * 989e12 * 0.25) / 3600
    assert plan.training is not None
    assert plan.training.hours == pytest.approx(hours)
    assert hours == pytest.approx(3.6, abs=0.05)  # The paper's run took about 3.5 h.
    assert plan.training.money == pytest.approx(2.0 * 32 * hours)
    assert plan.scoring is not None
    assert plan.scoring.work is not None
    assert plan.scoring.work.hours == pytest.approx(hours / 3)
    assert plan.disk is not None
    # 2,049 tokens and a domain of two bytes, 2,048 losses of two bytes.
    assert plan.disk.shards == -(-tokens // 2048) * (2 * 2049 + 2 + 2 * 2048)
    # Every 953rd step of 14,305 is kept, but not the 15th, which is 10 steps before the end; the last step is.
    assert plan.disk.kept == 14_305 // 953 - 1 + 1
    assert plan.disk.checkpoint == checkpoint_bytes(TINYLLAMA) == 12 * TINYLLAMA
    # Stage 2, two micro-steps: gradients in bf16 in each, and the weights once; 31 of 32 parts come from others.
    assert plan.network.bytes_per_step == 3 * 2 * TINYLLAMA * 31 // 32
    assert plan.memory.weights == 2 * TINYLLAMA
    assert plan.memory.gradients + plan.memory.optimizer == 16 * -(-TINYLLAMA // 32)
    assert plan.fits


def test_a_plan_of_7b_by_hand_and_by_the_paper() -> None:
    plan = planned("rho-math-7b/slm.yaml", 0.34)
    assert plan.training is not None
    assert plan.training.hours == pytest.approx(17.8, abs=0.05)  # The paper's run took about 18 h.
    assert plan.memory.weights + plan.memory.gradients + plan.memory.optimizer == 18 * -(-MISTRAL // 32)
    # Two micro-steps gather the weights once, again what was not kept, and reduce gradients.
    assert plan.network.bytes_per_step == 2 * 2 * (3 * MISTRAL - 1_000_000_000) * 31 // 32
    # 16,384 tokens: each layer's input in bf16; of the last norm its input in float32, and twice its output in bf16.
    assert plan.memory.activations == pytest.approx(16_384 * (32 * 2 + 8) * 4096, rel=0.005)
