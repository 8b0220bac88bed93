"""Files: whole or not there, texts with their line numbers, checked archives."""
