"""The parts of a model card: what is known of a model, from its files, its training and its owner."""
