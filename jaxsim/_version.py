"""The version, written nowhere else by hand."""

__version__ = "0.2.0"
