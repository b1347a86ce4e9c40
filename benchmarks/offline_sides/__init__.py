"""The sides of benchmarks/offline.py: what a user would otherwise pick, each in a process of its own."""
