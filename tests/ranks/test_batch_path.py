"""The path of one batch in docs/architecture.md, against the calls of a step."""

import re
import sys
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import FrameType

import torch

import megaslm
from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import plan_batches
from megaslm.engine.distributed import World
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.selective_lm import SelectiveLM
from megaslm.slm.objective import SelectiveObjective
from megaslm.slm.rule import KeepRatio, Moment, SelectionRule
from megaslm.stream.loader import TrainingStream
from megaslm.training.step import TrainStep
from tests.rank_pool import RankPool
from tests.streams import BATCH_ROWS, SEQ_LEN, SHUFFLE_SEED, VOCAB_SIZE, plan, write_stream
from tests.toy import SHAPE, run_config

PACKAGE = str(Path(megaslm.__file__).parent)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def first_calls(world: World, folder: Path) -> dict[str, str]:
    """The job: trains a step. The functions of megaslm that it calls, in the order of first calls, with their files."""
    stream = TrainingStream(
        [write_stream(folder / "stream", shards=2)],
        plan(),
        shuffle_seed=SHUFFLE_SEED,
        workers=0,
        eos_id=0,
    )
    config = run_config(
        Path("unused"),
        Path("unused"),
        model={"from_scratch": {**SHAPE, "vocab_size": VOCAB_SIZE}},
        data={"seq_len": SEQ_LEN},
        train={"micro_batch_rows": BATCH_ROWS, "global_batch_tokens": BATCH_ROWS * SEQ_LEN},
    )
    settings = deepspeed_settings(config, plan_batches(config, world.size), precision="fp32", on_gpu=False)
    assert config.model.from_scratch is not None
    lm = build_from_shape(config.model.from_scratch, eos_id=0, dtype=torch.float32)
    draw_weights(lm, seed=3, standard_deviation=0.02, sharding=ZeroSharding(settings))
    model = SelectiveLM(lm.train(), eos_id=0, document_isolation=True)
    engine = ZeroEngine(model, settings, adamw(model, settings, config.train))
    objective = SelectiveObjective(SelectionRule(KeepRatio(Decimal("0.6"))))
    step = TrainStep(engine, objective, world, eos_id=0, domain_count=1, may_repeat_rows=False)
    found: dict[str, str] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            found.setdefault(code.co_qualname, str(Path(code.co_filename).relative_to(Path(PACKAGE).parent)))

    source = stream.micro_batches(0)
    sys.setprofile(note)
    try:
        result = step(list(islice(source, 1)), Moment(1, 0), learning_rate=1e-3)
    finally:
        sys.setprofile(None)
        source.close()
    assert result.skipped is None
    return found


def test_the_path_of_one_batch_is_that_of_a_step(lone_rank: RankPool, tmp_path: Path) -> None:
    (called,) = lone_rank.run(first_calls, tmp_path)
    text = PAGE.read_text(encoding="utf-8").partition("## The path of one batch")[2].partition("With several")[0]
    listed = re.findall(r"`([\w.]+)\(\)`", text)
    assert len(listed) > 15
    assert listed == [name for name in called if name in listed]
    # Beside the calls of an item stand their files.
    for item in re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]:
        calls, files = re.findall(r"`([\w.]+)\(\)`", item), re.findall(r"`(megaslm/[\w/]+\.py)`", item)
        assert {called[name] for name in calls} == set(files), item
