"""Settings, records, data, networks and scores that several benchmarks share."""
