"""Models on disk: loaded with their weights mapped, saved one weight at a time."""
