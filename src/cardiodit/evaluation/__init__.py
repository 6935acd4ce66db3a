"""What a model is worth, in numbers that can be reproduced."""
