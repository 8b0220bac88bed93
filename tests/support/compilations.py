"""What is compiled while something runs."""

from contextlib import contextmanager

import jax

COMPILED = []


@jax.monitoring.register_event_duration_secs_listener
def listen(event, duration, **facts):
    if event.endswith("backend_compile_duration"):
        COMPILED.append(facts.get("fun_name", event))


@contextmanager
def compilations():
    """Names of what is compiled meanwhile."""
    COMPILED.clear()
    yield COMPILED
