"""The sides of `benchmarks.burst`: loads with a burst, replicas that come and go, and who decides on their number.

Role: everything the benchmark compares. Must not know: how the result is written.
"""
