"""What Ray Serve runs: the gateway, the dispatcher that it asks for leases, and the engine replicas.

Owns: the live request path. Must not know: how policies decide (cluster.scheduling) or how engines start
(cluster.engines).
"""
