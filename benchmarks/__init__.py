"""One topic a question; `python -m benchmarks NAME` runs it beside its peers.

`topics` has what is measured, `peers` the code of others beside it, `common` what topics share.
"""
