"""The version, written nowhere else by hand."""

__version__ = "0.1.0"
