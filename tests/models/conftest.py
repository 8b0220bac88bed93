"""What tests of models share."""

import jax
import pytest


@pytest.fixture
def compiled_as_elsewhere():
    """LLVM as users have it: in haste, two programs that differ in a shape sum in other orders."""
    hasty = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", hasty)
    jax.clear_caches()
