"""A reference's measurements, with compiled layers and without, and what a dataset stores of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from megaslm.config.schema import Architecture
from megaslm.dataset.manifest import Reference
from megaslm.model.load import build_from_shape, draw_weights
from megaslm.model.reference_model import Measured, ReferenceModel, as_stored
from tests.toy import EOS_ID, SEQ_LEN, SHAPE, VOCAB_SIZE, Unsharded, random_rows

MOST = 65504.0
"""The largest number of float16."""


def test_losses_are_stored_as_they_are_up_to_the_largest_of_float16() -> None:
    nats = torch.tensor([[0.5, 11.0, 60000.0, 70000.0], [-1e-6, torch.inf, 3.0, torch.nan]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    stored = as_stored(nats, valid)
    assert stored.dtype == torch.float16
    assert stored.tolist() == [[0.5, 11.0, 60000.0, MOST], [0.0, MOST, 0.0, 0.0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = build_from_shape(Architecture.model_validate(SHAPE), eos_id=EOS_ID, dtype=torch.float32)
    draw_weights(lm, seed=0, standard_deviation=0.3, sharding=Unsharded())
    lm.save_pretrained(tmp_path)
    return tmp_path


def measured(folder: Path, *, entropy: bool, compiled: bool) -> Measured:
    """Of rows in two windows, with documents isolated."""
    record = Reference(
        weights_sha256="",
        name="",
        precision="fp32",
        document_isolation=True,
        window=SEQ_LEN,
        stride=SEQ_LEN,
        batch_rows=4,
        dataset_sha256="",
        entropy=entropy,
    )
    model = ReferenceModel.load(folder, record, eos_id=EOS_ID, device=torch.device("cpu"), compiled=compiled)
    rows = random_rows(np.random.default_rng(0), 4, 2 * SEQ_LEN, VOCAB_SIZE)
    return model.measure(torch.from_numpy(rows))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("entropy", [False, True], ids=["losses", "with entropy"])
def test_compiled_layers_measure_the_same_in_one_graph(folder: Path, entropy: bool) -> None:
    expected = measured(folder, entropy=entropy, compiled=False)
    assert counters["stats"]["unique_graphs"] == 0
    found = measured(folder, entropy=entropy, compiled=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
