"""Tables, progress bars and timings for the console."""
