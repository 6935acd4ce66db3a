"""How much of a codebook is in use."""

import torch


class CodebookUse:
    """Counts how often each code was chosen."""

    def __init__(self, num_embeddings: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_embeddings, device=device)

    def add(self, indices: torch.Tensor) -> None:
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts))
