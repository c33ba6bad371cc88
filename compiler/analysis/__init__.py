"""Facts about a module and its outputs: metrics, cost, statistics."""
