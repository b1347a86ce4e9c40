"""State: tenants, API keys, the usage ledger and replica lifetimes, in SQLite or PostgreSQL.

Owns: the tables, their versions, and every query on them. Must not know: Ray, HTTP.
Calls block; async callers use `asyncio.to_thread`.
"""

from cluster.state.bill import GROUPINGS, Grouping, Spent, UsageLine
from cluster.state.costs import TenantCost, tenant_costs
from cluster.state.keys import KeyInfo, KeyNotFoundError, hash_key
from cluster.state.schema import StoreVersionError
from cluster.state.store import Store
from cluster.state.usage import Period, UsageRecord

__all__ = [
    "GROUPINGS",
    "Grouping",
    "KeyInfo",
    "KeyNotFoundError",
    "Period",
    "Spent",
    "Store",
    "StoreVersionError",
    "TenantCost",
    "UsageLine",
    "UsageRecord",
    "hash_key",
    "tenant_costs",
]
