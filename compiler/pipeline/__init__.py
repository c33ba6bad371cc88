"""Passes, pipelines of passes, pattern rules, dumps and remarks."""
