"""Functions and pytrees as values: equal where they compute the same, shown as they were called."""
