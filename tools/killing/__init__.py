"""What ``tools/kill_test.py`` kills, and how it looks at what is left."""
