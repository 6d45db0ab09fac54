"""Predictions to files, and the checks of such files."""
