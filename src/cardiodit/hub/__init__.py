"""Everything around the Hugging Face Hub: registration with diffusers, model cards, checks and publishing."""
