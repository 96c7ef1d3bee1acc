"""Attention within documents: the operator, its kernels on CPUs and GPUs, and the masked form for all other cases."""
