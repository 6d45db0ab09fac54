"""The measurements that ``tools/benchmark.py`` runs, one module per part of the package."""
