"""Ideas of hardware: each file one `Core -> Core` function, composed by the order they wrap in."""
