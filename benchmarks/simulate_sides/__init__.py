"""The sides of `benchmarks.simulate`: how fast, and how close to recorded runs."""
