"""Where a run is kept beside its folder: a bucket or a folder that all nodes reach, so that no disk is needed twice."""
