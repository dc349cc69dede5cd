"""Attention of packed conversations: what a model calls, and the kernels behind it."""
