"""How fast are games and meta-gradients, and what does a learned meta-solver win?"""

from __future__ import annotations

import jax

from benchmarks.common.parts import run_parts
from benchmarks.topics.nac.recipes import modes, poker
from benchmarks.topics.nac.settings import NacSettings
from benchmarks.topics.nac.skill import published, skill
from benchmarks.topics.nac.timing import timing

SHORT = ("--only timing --runs 5", "--only skill --seeds 2 --games 4 --steps 3")


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = NacSettings.read(args)
    jax.config.update(
        "jax_compilation_cache_dir", str(settings.log.expanduser().parent / "compiled")
    )
    parts = {
        "timing": timing,
        "skill": skill,
        "published": published,
        "modes": modes,
        "poker": poker,
    }
    run_parts(settings, parts)
