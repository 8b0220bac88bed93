"""Puts one fault at a time into jaxsim and lists those that no test notices.

`make mutate` runs it; CONTRIBUTING.md says how to read its table. Kept tools were tried and left:
mutmut rewrites functions into trampolines, which break the NamedTuples, signatures and module
constants that faults of a simulator's figures sit in; cosmic-ray starts an interpreter for each
fault, and importing JAX and compiling again costs more than the tests that notice. Here a server
has JAX imported and forks for each fault; only tests that reach its line run.
"""
