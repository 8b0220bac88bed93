"""Networks and long runs on disk."""

from jaxsim.checkpoint.log import Log, fingerprint
from jaxsim.checkpoint.resume import Trail, trail
from jaxsim.checkpoint.save_load import describe, load, save

__all__ = [
    "Log",
    "Trail",
    "describe",
    "fingerprint",
    "load",
    "save",
    "trail",
]
