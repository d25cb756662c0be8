"""Adapters ⇄ segments: which codec stores which tensors, and what an opened file offers."""
