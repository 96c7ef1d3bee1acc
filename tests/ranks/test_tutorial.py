"""Every command of docs/tutorial.md, on a small model and small text."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaslm.observe.records import read_validations
from tests.forked_cli import run_megaslm
from tests.launched import ROOT
from tests.own_text import make_model, write_corpus, write_problems

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
LAUNCHER, VERB, BOARD = "launcher/local.sh", "megaslm", "tensorboard"


def test_the_page_has_the_commands_that_init_prints() -> None:
    assert {command.split()[0] for command in COMMANDS} == {LAUNCHER, VERB, BOARD}


def test_its_commands_lead_from_text_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(Path("models/my-llama"))
    write_corpus(Path("corpora/web.jsonl"), documents=60)
    write_problems(Path("corpora/good.jsonl"), problems=60)
    printed = ""
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == VERB and arguments[0] == "prepare":
            arguments += ["--workers", "1"]
        if program != BOARD:
            said = run_megaslm(*arguments, world_size=2 if program == LAUNCHER else 1)
            printed = said if arguments[0] == "init" else printed
    for command in re.findall(r"^    (.+)$", printed, re.MULTILINE):
        # Outside of the clone, the launcher is printed with its whole path.
        assert command.removeprefix(f"{ROOT}/") in COMMANDS
    model, text = AutoModelForCausalLM.from_pretrained("my-run/models/slm"), "the loss of a token"
    ids = AutoTokenizer.from_pretrained("my-run/models/slm")(text)["input_ids"]
    assert ids[0] == model.config.bos_token_id
    losses = read_validations(Path("my-run/runs/slm/metrics.jsonl"))
    first, last = ([record.loss for record in losses if record.name == "curated"][place] for place in (0, -1))
    assert last < first
