"""Networks and long runs on disk."""

from jaxsim.checkpoint.log import ScoreCache, run_digest
from jaxsim.checkpoint.resumable import resumable
from jaxsim.checkpoint.resume import RunCheckpointer, run_checkpoints
from jaxsim.checkpoint.save_load import describe, load, save
from jaxsim.numerics.renamed import old_names

__all__ = [
    "RunCheckpointer",
    "ScoreCache",
    "describe",
    "load",
    "resumable",
    "run_checkpoints",
    "run_digest",
    "save",
]

__getattr__ = old_names(
    __name__,
    {
        "Log": ScoreCache,
        "Trail": RunCheckpointer,
        "fingerprint": run_digest,
        "trail": run_checkpoints,
    },
)
