"""Settings that every test shares."""

from hypothesis import HealthCheck, settings

# a first example compiles: that takes as long as it takes
settings.register_profile("jaxsim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("jaxsim")
