"""Memory that is mapped once: private to this process, or shared read-only with others."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sys

logger = logging.getLogger(__name__)

_MADV_POPULATE_WRITE = 23  # Linux 5.14
_F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1: whoever maps the file from now on can only read it


def map_private(nbytes: int) -> mmap.mmap:
    """Map anonymous memory, in huge pages where the system offers them: a page is paid for on its first touch only."""
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise_huge(pages)
    return pages


def map_shared(nbytes: int, name: str) -> tuple[mmap.mmap, int] | None:
    """Map memory that other processes can map, for reading only, through the descriptor returned beside it; None where that can't be had.

    The file is sealed: it can't shrink under a reader, and nobody but this mapping can ever write it.
    """
    if not sys.platform.startswith("linux"):
        return None
    descriptor = -1
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, nbytes)
        pages = mmap.mmap(descriptor, nbytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        logger.warning("memory can't be shared with other processes here: %s", error)
        return None
    _advise_huge(pages)
    return pages, descriptor


def make_ring(nbytes: int) -> tuple[mmap.mmap, int] | None:
    """Map memory for reading that another process writes through the descriptor returned beside it; None where that can't be had.

    The file is sealed against shrinking, so that reading it never faults.
    """
    if not sys.platform.startswith("linux"):
        return None
    descriptor = os.memfd_create("larder-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, nbytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ), descriptor


def touch(pages: mmap.mmap) -> bool:
    """Make the system back every page now, so that no put pays for it later; False where it can't be asked."""
    try:
        pages.madvise(_MADV_POPULATE_WRITE)
    except (OSError, AttributeError):
        return False
    return True


def _advise_huge(pages: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without huge pages
            return
