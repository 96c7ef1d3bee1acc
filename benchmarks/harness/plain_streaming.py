"""mosaicml-streaming as anybody uses it, for comparisons; its import needs what MegaSLM's own import of it provides."""
# ruff: noqa: I001

import megaslm.data.stream  # noqa: F401
from streaming import Stream, StreamingDataset

__all__ = ["Stream", "StreamingDataset"]
