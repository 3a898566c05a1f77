"""Search spaces, as YAML: a demo, published grids, and a README that explains every key."""
