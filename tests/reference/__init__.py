"""Naive twins: every formula once more, in loops and float64, for the library to be compared with.

A twin imports nothing from the library but its record types, so that no mistake can be shared.
Sizes of at most N = 8, C = 12, H W = 16 are assumed: a twin is written to be read, not to be fast.
"""
