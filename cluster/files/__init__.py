"""Files: whole objects in a local folder or behind a pyarrow.fs URL (S3 and others).

Owns: bytes under names. Must not know: tenants, tables, HTTP. Calls block; async callers use `asyncio.to_thread`.
"""

from cluster.files.store import FileStore, FileWriter

__all__ = ["FileStore", "FileWriter"]
