"""Settings that every test shares."""

import os

from hypothesis import HealthCheck, settings

# A first example compiles: that takes as long as it takes. CI judges a change by the same examples
# every time; elsewhere each run looks at new ones.
settings.register_profile(
    "jaxsim",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jaxsim")
