"""Task families of a shared context, one file each: see `kvworker.quality.task`."""
