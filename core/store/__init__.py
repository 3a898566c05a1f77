"""Files that outlast a crash, and the cache of shared work."""
