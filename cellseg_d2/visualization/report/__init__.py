"""One HTML page about one run, with everything in it: scores, curves, and images with cells."""

from .page import write_report

__all__ = ["write_report"]
