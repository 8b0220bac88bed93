"""What several benchmarks share: settings, records, data, networks and how they are scored."""
