"""Role: bring an engine up sooner than cold. Owns: the rungs of the cold-start ladder, which there are, and their cost.

`fork_host.py` and the preloads run in the engine's interpreter, as files; the rest runs in ours.
Must not know: Ray, tenants, requests.
"""
