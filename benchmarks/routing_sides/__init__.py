"""What `benchmarks.routing` compares: conversations, a model of engines with prefix caches, routers, figures, plots.

Role: one file a noun. The clock is a number that `simulation` moves; the router under test is the dispatcher's own
queue, which `ours.py` drives through its public methods.
"""
