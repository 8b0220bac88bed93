"""What a caller hands in: batches and labels, and checks of them."""
