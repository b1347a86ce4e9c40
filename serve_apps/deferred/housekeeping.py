"""What nobody needs any more. Owns: what may be deleted, and when. Must not know: who made it.

Every rule holds whatever else runs: rows go after their objects, objects go when no row can name them any more.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator

from serve_apps.deferred import offline_job, results
from serve_apps.deferred.shop import Shop

LEFTOVER_S = 24 * 3600.0
"""An object without a row is an upload under way, or what a crash left; no upload takes a day."""
SWEEP_S = 3600.0
_AT_ONCE = 500


def purge(shop: Shop) -> None:
    """Expired and deleted files, and background requests whose time is over."""
    now_s = time.time()
    shop.deferred.files.expire(now_s)
    while files := shop.deferred.files.purgeable(_AT_ONCE):
        for file in files:
            shop.files.delete(file.object_name)
        shop.deferred.files.purge(file.id for file in files)
    shop.deferred.purge_background(now_s)


def sweep(shop: Shop) -> None:
    """Objects that crashes left: uploads without a row, parts of batches that have ended."""
    for names in _some(shop.files.leftovers("", LEFTOVER_S)):
        for name in set(names) - shop.deferred.files.known(names):
            logging.getLogger(__name__).info("deleting %s, which no file is", name)
            shop.files.delete(name)
    for folder in (results.FOLDER, offline_job.FOLDER):
        for batch_ids in _some(shop.files.folders(folder)):
            for batch_id in set(batch_ids) - shop.deferred.batches.unfinished(batch_ids):
                shop.files.delete_folder(f"{folder}/{batch_id}")


def _some(names: Iterable[str]) -> Iterator[list[str]]:
    walk = iter(names)
    while some := list(itertools.islice(walk, _AT_ONCE)):
        yield some
