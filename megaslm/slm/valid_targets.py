"""Which targets count. The rule stands here alone; what reads rows without torch need not import it for this."""

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def valid_targets(tokens: "Tensor", eos_id: int) -> "Tensor": ...
@overload
def valid_targets(tokens: Any, eos_id: int) -> Any: ...
def valid_targets(tokens: Any, eos_id: int) -> Any:
    """Where a target counts: what follows EOS opens another document, or is padding. EOS itself is a target.

    Args:
        tokens: (..., L+1) integers, of numpy or torch; target i is token i+1.
        eos_id: ends every document and fills rows.

    Returns:
        (..., L) bool.
    """
    return tokens[..., :-1] != eos_id
