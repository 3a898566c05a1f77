"""What depends on how a language is written."""
