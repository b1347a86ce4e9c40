"""Tribes: offline, online and semi-online LLM work on one Ray cluster.

Role: the cluster side (configuration, scheduling policies, engines, state, command line).
Owns: nothing at import time; every heavy library is imported where it is used.
Must not know: the HTTP surface (serve_apps) or the batch jobs (batch_jobs).
"""

__version__ = "0.1.0"
