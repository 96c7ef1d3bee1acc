"""What runs compute with: GPUs, kernels, compiler; and the preflight's facts, judged by its own rules."""

import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed
from torch.cuda import nccl

from megaslm.config.devices import gpu_named
from megaslm.doctor.check import Check
from megaslm.engine.rank_names import Rank
from megaslm.errors import SandboxError
from megaslm.health.clocks import ClockReading
from megaslm.health.disk import size_of
from megaslm.health.findings import Requirements
from megaslm.health.host_facts import Code, RankFacts, look
from megaslm.health.preflight import shortages
from megaslm.model.attention import flash
from megaslm.model.documents import CPU_KERNEL, NO_KERNEL
from megaslm.sandbox.sandbox import Sandbox
from megaslm.slm.toolchain import lacking_for_cpu, lacking_for_gpu

_NO_DRIVER = "none"


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this host, as torch sees them."""

    names: tuple[str, ...]
    capabilities: tuple[str, ...]
    memory_bytes: tuple[int, ...]
    driver: str
    """The version of the kernel's module; `none` where there is none."""
    cuda: str | None
    """The release of CUDA that torch was built for; None for a build without."""
    nccl: str | None
    """The version of NCCL; None where torch has none, or there is no GPU."""
    torch_says: tuple[str, ...] = ()
    """Its warnings while it looked for GPUs."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES, where it is set."""


def usual_ranks() -> int:
    """One for each GPU, two on a host without any: as `launcher/local.sh` starts them."""
    return torch.cuda.device_count() or 2


def facts_of(requirements: Requirements) -> RankFacts:
    """The facts that a run's preflight would exchange, of this process alone."""
    # Clocks are compared with those of other hosts.
    return look(Rank(0, socket.gethostname()), requirements, ClockReading(time.time(), 0.0))


def code(facts: RankFacts) -> Iterator[Check]:
    """What must be equal on all hosts: MegaSLM's own files, and the libraries."""
    own = Code.of(facts.rank)
    versions = ", ".join(f"{library} {found}" for library, found in facts.versions.items())
    found = f"MegaSLM's files have the hash {own.sources_sha256[:12]}; {versions}"
    yield Check("code", "ok", found, facts={"sources_sha256": own.sources_sha256, **facts.versions})


def gpus(facts: RankFacts) -> Iterator[Check]:
    """The GPUs, their driver, CUDA and NCCL."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = [torch.cuda.get_device_properties(number) for number in range(count)]
    has_nccl = count > 0 and torch.distributed.is_nccl_available()
    yield from judge_gpus(
        Gpus(
            names=tuple(gpu.name for gpu in seen),
            capabilities=tuple(f"{gpu.major}.{gpu.minor}" for gpu in seen),
            memory_bytes=tuple(gpu.total_memory for gpu in seen),
            driver=facts.driver,
            cuda=torch.version.cuda,
            nccl=".".join(map(str, nccl.version())) if has_nccl else None,
            torch_says=tuple(str(warning.message) for warning in told),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
    )


def judge_gpus(found: Gpus) -> Iterator[Check]:
    """Judges the GPUs, and what torch needs to use them."""
    details = {
        "names": found.names,
        "capabilities": found.capabilities,
        "memory_bytes": found.memory_bytes,
        "driver": found.driver,
        "cuda_of_torch": found.cuda,
        "nccl": found.nccl,
        "torch_says": found.torch_says,
        "cuda_visible_devices": found.visible,
    }
    if not found.names:
        yield _no_gpu(found, details)
        return
    kinds = {
        f"{found.names.count(name)} × {name} with {size_of(memory)} (capability {capability})"
        for name, memory, capability in zip(found.names, found.memory_bytes, found.capabilities, strict=True)
    }
    told = f"{', '.join(sorted(kinds))}; driver {found.driver}, CUDA {found.cuda}, NCCL {found.nccl or 'none'}"
    unknown = sorted({name for name in found.names if gpu_named(name) is None})
    if unknown:
        told += f"; the peak of {', '.join(unknown)} is not known, so that no MFU is told"
    if len(found.names) > 1 and found.nccl is None:
        yield Check(
            "GPUs", "problem", f"{told}: several ranks need NCCL", "install a build of torch with NCCL", details
        )
    elif len(kinds) > 1:
        yield Check(
            "GPUs",
            "warning",
            f"{told}: all ranks run at the speed of the slowest",
            "set CUDA_VISIBLE_DEVICES to those of one kind",
            details,
        )
    else:
        yield Check("GPUs", "ok", told, facts=details)


def _no_gpu(found: Gpus, details: Mapping[str, object]) -> Check:
    if found.driver == _NO_DRIVER and not found.torch_says:
        return Check("GPUs", "ok", "there is no GPU and no NVIDIA driver: runs use the processors", facts=details)
    told = f"torch sees no GPU, although the host has the NVIDIA driver {found.driver}"
    if found.driver == _NO_DRIVER:
        told = "torch sees no GPU"
    told += "".join(f"; torch says: {line}" for line in found.torch_says)
    if found.cuda is None:
        return Check(
            "GPUs",
            "warning",
            f"{told}: this torch was built without CUDA",
            "install a build of torch with CUDA",
            details,
        )
    if found.visible is not None:
        told += f"; CUDA_VISIBLE_DEVICES = {found.visible!r}"
        return Check("GPUs", "warning", told, "unset CUDA_VISIBLE_DEVICES", details)
    remedy = f"install a driver for CUDA {found.cuda} or newer; give a container its GPUs (docker run --gpus all)"
    return Check("GPUs", "warning", told, remedy, details)


def attention() -> Iterator[Check]:
    """Which kernel computes attention within documents."""
    if not torch.cuda.is_available():
        yield from judge_attention(CPU_KERNEL)
    else:
        has_kernel = flash.has_kernel(torch.device("cuda", 0))
        yield from judge_attention(flash.implementation() if has_kernel else NO_KERNEL)


def judge_attention(kernel: str) -> Iterator[Check]:
    """Judges a kernel by its name, as logs have it."""
    if kernel != NO_KERNEL:
        yield Check("attention", "ok", f"within documents by {kernel}", facts={"kernel": kernel})
        return
    found = "no FlashAttention for this GPU and torch: attention has masks, which are slow and take L² of memory"
    remedy = "use a GPU of Ampere (compute capability 8.0) or newer, with torch's FlashAttention"
    yield Check("attention", "warning", found, remedy, {"kernel": kernel})


def compiler() -> Iterator[Check]:
    """Whether what runs compile can be compiled here."""
    on_gpu = torch.cuda.is_available()
    yield from judge_compiler(on_gpu, lacking_for_gpu() if on_gpu else lacking_for_cpu())


def judge_compiler(on_gpu: bool, lacking: str | None) -> Iterator[Check]:
    """Judges the compiler. `lacking`: what compiling lacks, in words."""
    facts = {"lacking": lacking}
    if lacking is None:
        used = (
            "for layers and the loss head" if on_gpu else "for model.compile = on; without a GPU auto compiles nothing"
        )
        yield Check("compiler", "ok", f"there is one, {used}", facts=facts)
    elif on_gpu:
        found = (
            f"{lacking}: neither decoder layers nor the kernel of the loss head are compiled, so that steps are slower"
        )
        yield Check("compiler", "warning", found, "apt-get install gcc python3-dev; make install EXTRAS=gpu", facts)
    else:
        yield Check("compiler", "ok", f"{lacking}; without a GPU only model.compile = on needs it", facts=facts)


def arithmetic() -> Iterator[Check]:
    """How torch multiplies in float32, and whether it repeats its results."""
    precision = torch.get_float32_matmul_precision()
    found = (
        f"float32 products are of {precision} precision; on a GPU only train.deterministic sums the gradient of "
        "attention in a fixed order"
    )
    facts = {"float32_matmul_precision": precision, "threads": torch.get_num_threads()}
    yield Check("arithmetic", "ok", found, facts=facts)


def resources(facts: RankFacts, ranks: int) -> Iterator[Check]:
    """What so many ranks on this host find too little of, by the preflight's rules."""
    every_rank: Sequence[RankFacts] = [replace(facts, rank=Rank(number, facts.rank.host)) for number in range(ranks)]
    shared = None if facts.shared_memory is None else facts.shared_memory.free_bytes
    details = {
        "memory_bytes": facts.memory_bytes,
        "shared_memory_bytes": shared,
        "cache_bytes": None if facts.cache is None else facts.cache.free_bytes,
        "checkpoint_bytes": facts.checkpoint_bytes,
        "ranks": ranks,
    }
    found = shortages(every_rank)
    for finding in found:
        yield Check("resources", "problem" if finding.ends_the_job else "warning", finding.text, facts=details)
    if not found:
        told = f"{size_of(facts.memory_bytes)} of memory left, /dev/shm has room for "
        told += "nothing: it is not there" if shared is None else size_of(shared)
        yield Check("resources", "ok", told, facts=details)


def sandbox() -> Iterator[Check]:
    """How programs that a model writes would be kept apart; only evaluations need it."""
    try:
        with Sandbox(workers=1) as opened:
            yield Check("sandbox", "ok", opened.describe(), facts={"tier": opened.tier.name})
    except SandboxError as error:
        yield Check("sandbox", "warning", f"evaluations cannot run programs that a model writes: {error}")
