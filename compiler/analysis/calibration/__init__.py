"""Calibration: what the values of a module are over samples, and ranges from that."""
