"""Ranks, and DeepSpeed under them."""
