"""The demo: one cluster, three tribes of work, and what happened, in tables and as `artifacts/demo.json`.

Owns: what is sent and how it is measured, from the client's side. Must not know: how anything is served.
"""

from cluster.demo.run import run_demo

__all__ = ["run_demo"]
