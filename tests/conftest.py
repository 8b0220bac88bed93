"""Settings that every test shares."""

import gc
import os
import threading
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

MAPS = Path("/proc/self/maps")

# XLA cuts a program into modules for the threads of LLVM, which takes a tenth of the compiler's
# time where each core has a worker already. Read when the first computation begins, here and in
# processes that tests start.
FLAGS = "--xla_cpu_parallel_codegen_split_count=1"

if jax.__version_info__ < (0, 11):
    # XLA's newer code generation for fusions takes a third of the tests' time; both compute the
    # same operations. Since jax 0.11 there is no other, and XLA aborts a process that names a flag
    # it does not know.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

    # JAX lowers each program in an MLIR context of its own, and to fill one with dialects takes 9
    # of the 30 ms of a lone operation. JAX 0.12 uses a context again, as is done here; it keeps
    # the constants of its programs, so it is renewed. A program that is lowered while another is
    # would become a part of that one, and has a context of its own.
    new_context, contexts = mlir.make_ir_context, threading.local()

    def shared_context():
        """The context of this thread's last programs, or a new one after fifty."""
        if ir.Context.current is not None:
            return new_context()
        contexts.programs = getattr(contexts, "programs", 0) + 1
        if contexts.programs % 50 == 1:
            contexts.held = new_context()
        return contexts.held

    mlir.make_ir_context = shared_context

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

# Tracing makes objects by the ten thousand: to look for cycles among each 700 takes a twentieth of
# the tests' time.
gc.set_threshold(20_000, 20, 20)

# A first example compiles: that takes as long as it takes. CI judges a change by the same examples
# every time; elsewhere each run looks at new ones.
settings.register_profile(
    "jaxsim",
    deadline=None,
    max_examples=30,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jaxsim")


@pytest.fixture(autouse=True, scope="module")
def hastily_compiled(request):
    """Has LLVM optimize little: most of a test's time is the compiler's.

    XLA's own passes stay as they are. Modules that train for long say
    `pytestmark = pytest.mark.optimized`.
    """
    hasty = request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", hasty)


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """Drops what was compiled before it is too much.

    Each program takes memory maps, and Linux allows a process 65530 of them: a worker that kept
    those of a thousand tests died in the compiler.
    """
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
