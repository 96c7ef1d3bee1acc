"""What ranks tell one another before they know whether they fit together: JSON, of which nothing is unpickled."""

from typing import TypeVar

import torch
from pydantic import TypeAdapter

from megaslm.engine.distributed import all_gather

T = TypeVar("T")


def exchange(value: T, device: torch.device) -> list[T]:
    """The dataclass of every rank, in rank order, on every rank; called on all ranks with one type."""
    adapter = TypeAdapter(type(value))
    own = torch.frombuffer(bytearray(adapter.dump_json(value)), dtype=torch.uint8).to(device)
    sizes: list[int] = all_gather(torch.tensor(len(own), device=device)).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    texts = all_gather(padded).cpu().numpy()
    return [adapter.validate_json(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]
