"""One program a module, each run in processes of its own: what ``whole`` compares."""
