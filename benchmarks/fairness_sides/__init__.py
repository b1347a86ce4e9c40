"""What `benchmarks.fairness` compares and measures: loads, a model of an engine, policies, metrics, plots, live runs.

Role: one file a noun. The simulation's clock is a number that the engine model moves; the only policy that is not in
`policies.py` is the one under test, the live dispatcher's own queue, which `ours.py` drives through its public methods.
"""
