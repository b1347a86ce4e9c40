"""The gateway: a bare ASGI app in front of the engines' own OpenAI servers.

Key -> tenant -> request class -> lease -> the engine's bytes -> bill. Runs behind Ray Serve's HTTP endpoint and behind
the gateway's own listener alike. Owns: the HTTP contract. Must not know: how leases are granted, how engines are
started.
"""
