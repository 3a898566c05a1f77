"""A model: where it comes from, how it is loaded, its layers, and how it decodes."""
