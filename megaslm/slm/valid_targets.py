"""Which targets are valid. The rule is in a file of its own, so that code without torch can import it."""

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def valid_targets(tokens: "Tensor", eos_id: int, target_mask: "Tensor | None" = None) -> "Tensor": ...
@overload
def valid_targets(tokens: Any, eos_id: int, target_mask: Any = None) -> Any: ...
def valid_targets(tokens: Any, eos_id: int, target_mask: Any = None) -> Any:
    """True where a target is valid. A target after EOS opens another document or is padding. EOS itself is a target.

    Args:
        tokens: (..., L+1) integers, of numpy or torch; target i is token i+1.
        eos_id: ends every document and fills rows.
        target_mask: (..., L) integers or bool, 0 where the dataset excludes a target, such as one of a prompt; None
            where it excludes none.

    Returns:
        (..., L) bool.
    """
    within_document = tokens[..., :-1] != eos_id
    return within_document if target_mask is None else within_document & (target_mask != 0)
