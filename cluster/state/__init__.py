"""State: tenants, API keys, the usage ledger and replica lifetimes, in SQLite or PostgreSQL.

Owns: the tables and every query on them. Must not know: Ray, HTTP, scheduling.
Calls block; async callers use `asyncio.to_thread`.
"""

from cluster.state.costs import TenantCost, tenant_costs
from cluster.state.keys import KeyInfo, KeyNotFoundError, hash_key
from cluster.state.store import Store, UsageRecord

__all__ = ["KeyInfo", "KeyNotFoundError", "Store", "TenantCost", "UsageRecord", "hash_key", "tenant_costs"]
