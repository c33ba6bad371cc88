"""The text form of a model: printer and parser."""
