"""Devices, micro-batches, schedules and programs of a network that runs in stages."""
