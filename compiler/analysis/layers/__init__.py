"""The comparison of two programs layer by layer."""
