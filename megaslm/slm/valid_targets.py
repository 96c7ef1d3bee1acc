"""Which targets are valid. The rule is in a file of its own, so that code without torch can import it."""

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def valid_targets(tokens: "Tensor", eos_id: int) -> "Tensor": ...
@overload
def valid_targets(tokens: Any, eos_id: int) -> Any: ...
def valid_targets(tokens: Any, eos_id: int) -> Any:
    """True where a target is valid. A target after EOS opens another document or is padding. EOS itself is a target.

    Args:
        tokens: (..., L+1) integers, of numpy or torch; target i is token i+1.
        eos_id: ends every document and fills rows.

    Returns:
        (..., L) bool.
    """
    return tokens[..., :-1] != eos_id
