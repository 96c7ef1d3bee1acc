"""Of test_generation: a live ZeRO model that continues texts, measures, and trains on."""

from pathlib import Path

import torch
from torch import Tensor

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.engine.cpu_group import CpuGroup
from megaslm.engine.distributed import World, gather_objects
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.generation.local import LocalGenerator
from megaslm.generation.sampling import Completion, Prompt, Sampling
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.plain_lm import PlainLM
from megaslm.model.selective_lm import CausalLM, SelectiveLM
from megaslm.slm.choice import Every
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, Unsharded, run_config

SAMPLINGS = {
    "greedy": Sampling(12, stop=("w7",)),
    "sampled": Sampling(12, stop=("w7", "w11 "), temperature=1.0, top_p=0.9),
}
PROMPTS = [
    Prompt(tuple(range(3 + number, 6 + 3 * number)), 40 + number)
    if number % 2
    else Prompt("w5 w6 w" + str(number), number)
    for number in range(7)
]

FIRST_SHARE = 6
"""Of two ranks, prompts of the first one: it has three batches, the other has one."""


def rows() -> Tensor:
    """Of several documents."""
    return torch.randint(EOS_ID, 12, (4, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))


def plain_completions(tokenizer: Path) -> dict[str, list[Completion]]:
    """What the model gives without an engine."""
    architecture = run_config(Path("unused"), Path("unused")).model.from_scratch
    assert architecture is not None
    lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=Unsharded())
    generator = LocalGenerator.of(PlainLM(lm.eval()), TextTokens.of_folder(tokenizer), batch_rows=1)
    return {name: generator.generate(PROMPTS, sampling) for name, sampling in SAMPLINGS.items()}


def generate_live(world: World, tokenizer: Path, stage: int, checkpointing: bool) -> dict[str, list[Completion]]:
    """The completions of all ranks. Each rank continues its share."""
    config = run_config(
        Path("unused"),
        Path("unused"),
        train={"micro_batch_rows": 8 // world.size},
        zero={"stage": stage},
        model={"from_scratch": SHAPE, "recompute": "full" if checkpointing else "none"},
    )
    settings = deepspeed_settings(config, plan_batches(config, world.size), precision="fp32", on_gpu=False)
    sharding = ZeroSharding(settings)
    architecture = config.model.from_scratch
    assert architecture is not None
    lm: CausalLM = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.3, sharding=sharding)
    prepare_layers(lm.train(), recompute=config.model.recompute, compiled=False)
    model = SelectiveLM(lm, eos_id=EOS_ID, document_isolation=True)
    engine = ZeroEngine(model, settings, adamw(model, settings, config.train))
    group = CpuGroup(world)
    generator = LocalGenerator(
        engine.next_logits,
        TextTokens.of_folder(tokenizer),
        context_tokens=architecture.max_position_embeddings,
        device=world.device,
        batch_rows=2,
    )
    before = engine.measure(rows()).losses
    mine = (
        range(len(PROMPTS)) if world.size == 1 else (range(FIRST_SHARE), range(FIRST_SHARE, len(PROMPTS)))[world.rank]
    )
    found: dict[str, list[Completion]] = {}
    for name, sampling in SAMPLINGS.items():
        with engine.decoding():
            completions = generator.generate([PROMPTS[place] for place in mine], sampling, keep_going=group.any)
        everywhere = dict(pair for pairs in gather_objects(list(zip(mine, completions, strict=True))) for pair in pairs)
        found[name] = [everywhere[place] for place in range(len(PROMPTS))]
        _train_on(engine)
    assert torch.equal(engine.measure(rows()).losses, before)
    return found


def _train_on(engine: ZeroEngine) -> None:
    """A step: what generation left behind must not disturb it. At a rate of 0, so that the model stays the same."""
    mask = torch.ones(4, SEQ_LEN, dtype=torch.bool)
    output = engine.forward(rows(), Every(mask.flatten()))
    engine.backward(output.total / mask.sum())
    assert not engine.step(0.0)
    assert float(engine.gradient_norm()) > 0
