"""What one run needs of this machine, beside what `train --check` looks at."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from megaslm.config.run_files import require_no_run
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import TOKENIZER, Manifest, read_manifest
from megaslm.dataset.remote import read_remote_manifest
from megaslm.doctor.check import Check
from megaslm.errors import ConfigError
from megaslm.model.attention import flash
from megaslm.model.decoder_layers import is_compiled
from megaslm.model.finished import unfinished_export
from megaslm.model.fit import bos_warning, check_model_fits, check_tokenizer_fits
from megaslm.model.shapes import shape_of
from megaslm.observe.display import counted, gib
from megaslm.observe.tracker import check_tracker
from megaslm.storage.file_systems import is_remote
from megaslm.storage.retries import RemoteSettings

_QUICKLY = RemoteSettings(attempts=2, timeout_seconds=20.0)
"""A run is more patient. Whoever calls a doctor waits for the answer."""


class Stores:
    """The manifests of remote datasets, each of them read once, and how long that took."""

    def __init__(self) -> None:
        self.manifests: dict[str, Manifest] = {}
        self._seconds: dict[str, float] = {}

    def read(self, url: str) -> Manifest:
        """The manifest at a URL. Raises DataError where it cannot be read."""
        if url not in self.manifests:
            began = time.monotonic()
            self.manifests[url] = read_remote_manifest(url.rstrip("/"), _QUICKLY)
            self._seconds[url] = time.monotonic() - began
        return self.manifests[url]

    def checks(self) -> Iterator[Check]:
        """A finding for each dataset that was read."""
        for url, seconds in self._seconds.items():
            yield Check("store", "ok", f"{url}: its manifest was read in {seconds:.2g} s", facts={"seconds": seconds})


def inputs(
    problems: Sequence[str], warnings: Sequence[str], unseen: Mapping[str, Sequence[str]], ranks: int
) -> Iterator[Check]:
    """What `train --check` found, a finding for each message. `unseen`: what it did not look at, by the reason."""
    for problem in problems:
        yield Check("inputs", "problem", problem)
    for warning in warnings:
        yield Check("inputs", "warning", warning)
    for reason, things in unseen.items():
        yield Check("inputs", "ok", f"not looked at: {', '.join(things)}: {reason}")
    if not problems:
        yield Check("inputs", "ok", f"all that train --check looks at is there and fits {counted(ranks, 'rank')}")


def run_folder(run_dir: Path) -> Iterator[Check]:
    """Whether the run's folder, or one that it would be made in, can be written, and holds no run yet."""
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    yield from judge_run_folder(run_dir, existing, os.access(existing, os.W_OK | os.X_OK))
    try:
        require_no_run(run_dir)
    except ConfigError as error:
        yield Check("run folder", "warning", str(error))


def judge_run_folder(run_dir: Path, existing: Path, may_write: bool) -> Iterator[Check]:
    """Judges the run's folder by the nearest one that exists."""
    if may_write:
        yield Check("run folder", "ok", f"{run_dir} can be written")
        return
    found = f"run_dir = {run_dir}: {existing} cannot be written"
    yield Check("run folder", "problem", found, "set run_dir to a folder that you may write to")


def model_and_data(config: RunConfig, stores: Stores) -> Iterator[Check]:
    """Whether the model's shape and tokenizer are those of the first dataset, as the run itself compares them."""
    place = config.data.train or next(iter(config.data.streams.values())).dataset
    manifest = stores.read(place) if is_remote(place) else read_manifest(Path(place))
    shape = shape_of(config.model, None)
    check_model_fits(shape.config, manifest, model=shape.source, dataset=place)
    pretrained = None if config.model.from_pretrained is None else Path(config.model.from_pretrained)
    compared = "shape"
    if pretrained is not None and not is_remote(place):
        check_tokenizer_fits(pretrained, manifest, tokenizer=Path(place) / TOKENIZER, dataset=place)
        warning = bos_warning(pretrained, manifest, dataset=place)
        if warning is not None:
            yield Check("model", "warning", warning)
        compared = "shape and tokenizer"
    how_far = None if pretrained is None else unfinished_export(pretrained)
    if how_far is not None:
        yield Check(
            "model", "warning", f"{pretrained} was exported at {how_far}; finish that run to start from its end"
        )
    facts = {
        "vocab_size": shape.config.vocab_size,
        "dataset_vocab_size": manifest.vocab_size,
        "seq_len": manifest.seq_len,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "dataset_kind": manifest.kind,
        "written_by": manifest.megaslm_version,
    }
    yield Check("model", "ok", f"the {compared} of {shape.source} fits {place}", facts=facts)


def choices(config: RunConfig) -> Iterator[Check]:
    """Settings that need something of the machine. Raises ConfigError where it is not there."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    compiled = is_compiled(config.model.compile, device, name="model.compile =")
    flash.activate(config.model.flash_attention, device, name="model.flash_attention =")
    check_tracker(config.log.tracker)
    told = f"decoder layers are {'' if compiled else 'not '}compiled; tracker: {config.log.tracker or 'none'}"
    yield Check("choices", "ok", told)


def memory(needed_bytes: int, usable_bytes: int, device: str, fit_command: str) -> Iterator[Check]:
    """Whether a rank's memory holds the run, by its plan. A prediction: the run is not kept from starting."""
    facts = {"needed_bytes": needed_bytes, "usable_bytes": usable_bytes, "device": device}
    fits = needed_bytes <= usable_bytes
    usable = f"the {gib(usable_bytes)} GiB that may be used ({device})"
    found = f"a rank is predicted to take {gib(needed_bytes)} GiB, {'of' if fits else 'more than'} {usable}"
    if fits:
        yield Check("plan", "ok", found, facts=facts)
    else:
        yield Check("plan", "warning", found, fit_command, facts)
