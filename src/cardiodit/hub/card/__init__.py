"""Parts of a model card, from the model's files, its training runs and its owner's facts."""
