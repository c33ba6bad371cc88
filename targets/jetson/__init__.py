"""NVIDIA Jetson boards through Apache TVM."""
