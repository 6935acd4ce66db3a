"""Compare a forward pass of the published transformer with the time of its matrix products and attention alone.

    python benchmarks/transformer.py                     # dit_ds8_b4 at 6144 tokens, float32 on CPU
    python benchmarks/transformer.py --layers 2          # the same blocks, but only two

The lower bound is the total time of the model's matrix products (the same shapes, through torch.nn.functional.linear)
and of one contiguous attention call per block, measured in alternation with the model.
"""

import argparse

import torch
import torch.nn.functional as F
from measuring import interleaved, machine

from cardiodit import DiT4DTransformerModel

SIZES = {"S": 8, "B": 12, "L": 16}  # layers; all are 768 wide with 12 heads
TOKENS, WIDTH, HEADS = 6144, 768, 12


def products(layers: int, dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return input, weight and bias of every matrix product on tokens in one forward pass."""

    def linear(rows: int, inner: int, outer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        make = {"dtype": dtype, "device": device}
        return torch.randn(1, rows, inner, **make), torch.randn(outer, inner, **make), torch.zeros(outer, **make)

    block = [linear(TOKENS, WIDTH, WIDTH) for _ in range(4)]
    block += [linear(TOKENS, WIDTH, 4 * WIDTH), linear(TOKENS, 4 * WIDTH, WIDTH), linear(1, WIDTH, 6 * WIDTH)]
    ends = [linear(TOKENS, 8 * 32, WIDTH), linear(TOKENS, WIDTH, 8 * 32), linear(1, WIDTH, 2 * WIDTH)]
    return block * layers + ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="B")
    parser.add_argument("--layers", type=int, help="number of blocks (default: that of the size)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    layers = arguments.layers or SIZES[arguments.size]

    model = DiT4DTransformerModel(num_layers=layers).to(device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.to(dtype)
    latents = torch.randn(1, 8, 6, 64, 64, 8, dtype=dtype, device=device)
    linears = products(layers, dtype, device)
    query, key, value = torch.randn(3, 1, HEADS, TOKENS, WIDTH // HEADS, dtype=dtype, device=device)

    @torch.no_grad()
    def forward() -> object:
        return model(latents, 7).sample

    @torch.no_grad()
    def multiply() -> None:
        for rows, weight, bias in linears:
            F.linear(rows, weight, bias)

    @torch.no_grad()
    def attend() -> None:
        for _ in range(layers):
            F.scaled_dot_product_attention(query, key, value)

    seconds = interleaved({"forward": forward, "products": multiply, "attention": attend}, arguments.rounds)
    lower_bound = seconds["products"] + seconds["attention"]
    print(f"{machine()}\n{layers} layers, {TOKENS} tokens, {arguments.dtype}, median of {arguments.rounds}")
    print(
        f"forward {seconds['forward']:.3f} s; its products {seconds['products']:.3f} s and attention "
        f"{seconds['attention']:.3f} s: {seconds['forward'] / lower_bound:.3f} times their sum"
    )


if __name__ == "__main__":
    main()
