"""Analyses of trained networks: functions that return plain rows."""
