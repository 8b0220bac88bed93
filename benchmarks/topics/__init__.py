"""Benchmarks, one topic a file or folder.

A topic has `main(args)`, which measures and records, and `SHORT`, its short forms: one line of
options each. `benchmarks.common.topics` finds it by its file.
"""
