"""One generation request from its lease to its bill: attempts, failover, continuations, budgets for both.

Must not know: who asked and how the answer travels (relay.py, headless.py).
"""
