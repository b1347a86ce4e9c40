"""Other regions' gateways: which of them a request should run in, and the way there.

Must not know: our own replicas.
"""
