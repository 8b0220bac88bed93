"""Network -> Network functions, one a file."""
