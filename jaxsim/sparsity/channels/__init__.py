"""Which channels of a model belong together, and models without some of them."""
