"""Rows of text by role: read from their sources, tokenised, and split without overlap."""
