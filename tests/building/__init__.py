"""The public build(): what goes in, what comes out, what is refused, and whether it learns what PyTorch learns."""
