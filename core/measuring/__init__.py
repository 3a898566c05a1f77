"""What a trial measures of a model, and what it decides by that."""
