"""`python -m jaxsim.cli`: the command line."""

from jaxsim.cli.main import main

main()
