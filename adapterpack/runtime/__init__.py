"""Adapters in a live model: the one layer, with `train`, that knows torch."""
