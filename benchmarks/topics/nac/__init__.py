"""How fast are games and meta-gradients, and what does a learned meta-solver win?"""

from __future__ import annotations

import jax

from benchmarks.common.parts import run_parts
from benchmarks.topics.nac import recipes, skill, timing
from benchmarks.topics.nac.settings import NacSettings

SHORT = ("--only timing --runs 5", "--only skill --seeds 2 --games 4 --steps 3")


def main(args: list[str]) -> None:
    """Measures the parts asked for."""
    settings = NacSettings.read(args)
    jax.config.update(
        "jax_compilation_cache_dir", str(settings.log.expanduser().parent / "compiled")
    )
    parts = {
        "timing": timing.timing,
        "skill": skill.skill,
        "published": skill.published,
        "modes": recipes.modes,
        "poker": recipes.poker,
    }
    run_parts(settings, parts)
