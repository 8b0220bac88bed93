"""jaxsim: what a Flax model becomes on tomorrow's hardware, by composing pure functions."""

from jaxsim.network import Network, Site, deploy, trace
