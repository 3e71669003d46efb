"""Measurements of time and memory beside backpropagation written by hand."""
