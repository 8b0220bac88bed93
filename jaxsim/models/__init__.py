"""Flax models, each a plain module that knows nothing of hardware."""
