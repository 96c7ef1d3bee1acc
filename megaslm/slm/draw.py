"""Sampling without replacement as a top k: noise that a hash of the key gives, so that every layout draws alike."""

from dataclasses import dataclass

from torch import Tensor

from megaslm.slm.keys import HASH_BITS, hash_of


@dataclass(frozen=True)
class Draw:
    """The draw of one step. `temperature`: in nats."""

    temperature: float
    seed: int
    step: int

    def perturbed(self, values: Tensor, keys: Tensor) -> Tensor:
        """value / temperature + Gumbel noise. The k largest are a sample of k targets, drawn one by one, without
        replacement, in proportion to exp(value / temperature) (Kool, van Hoof, Welling: Stochastic beams, 2019).

        Args:
            values: float32 in nats, of any shape.
            keys: int64 of the same shape.

        Returns:
            float32 of the same shape, NaN or infinite where the value is.
        """
        uniform = (hash_of(keys, self.seed, self.step).double() + 0.5) / (1 << HASH_BITS)
        return (values.double() / self.temperature - (-uniform.log()).log()).float()
