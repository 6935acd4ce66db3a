"""Compare the VQ model with MONAI's, with the same weights, and measure the memory that slicing saves.

python benchmarks/autoencoder.py
"""

import argparse
import json
import subprocess
import sys

import torch
from measuring import interleaved, machine, peak_mib

from cardiodit import VQModel4D

PUBLISHED = {"channels": (128, 256), "num_res_channels": (256, 256), "num_embeddings": 16384, "embedding_dim": 8}


def ours() -> VQModel4D:
    torch.manual_seed(0)
    return VQModel4D(**PUBLISHED).eval()


def monai_model(model: VQModel4D) -> torch.nn.Module:
    """Return MONAI's VQVAE with our weights."""
    from monai.networks.nets import VQVAE

    theirs = VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=PUBLISHED["channels"],
        num_res_channels=PUBLISHED["num_res_channels"],
        num_res_layers=2,
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        num_embeddings=PUBLISHED["num_embeddings"],
        embedding_dim=PUBLISHED["embedding_dim"],
    ).eval()
    theirs.encoder.load_state_dict(model.encoder.state_dict())
    theirs.decoder.load_state_dict(model.decoder.state_dict())
    theirs.quantizer.quantizer.embedding.weight.data.copy_(model.quantizer.weight)
    return theirs


def compare(size: int, frames: int, rounds: int) -> None:
    model = ours()
    theirs = monai_model(model)
    torch.manual_seed(1)
    image = torch.rand(1, 1, size, size, frames) * 2 - 1
    with torch.no_grad():
        latents = model.encode(image).latents
        assert torch.allclose(theirs.encoder(image), latents, atol=1e-5)
        quantised = model.quantize(latents).latents
        assert torch.allclose(
            theirs.decoder(quantised), model.decode(quantised, force_not_quantize=True).sample, atol=1e-5
        )
        runs = {
            "encode": lambda: model.encode(image).latents,
            "MONAI encode": lambda: theirs.encoder(image),
            "quantise": lambda: model.quantize(latents).latents,
            "MONAI quantise": lambda: theirs.quantize(latents),
            "decode": lambda: model.decode(quantised, force_not_quantize=True).sample,
            "MONAI decode": lambda: theirs.decoder(quantised),
        }
        seconds = interleaved(runs, rounds)
    for name in ("encode", "quantise", "decode"):
        mine, other = seconds[name], seconds[f"MONAI {name}"]
        print(f"{name}: {mine:.3f} s, MONAI {other:.3f} s: {mine / other:.3f} times")


def peak_of_decoding(depth: int, slicing: bool) -> float:
    """Measure decoding `depth` slices of the published size in a separate process."""
    command = [sys.executable, "-W", "ignore", __file__, "--peak", str(depth), str(int(slicing))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


@torch.no_grad()
def measure_peak(depth: int, slicing: bool) -> None:
    model = ours()
    if slicing:
        model.enable_slicing()
    latents = torch.randn(1, 8, depth, 64, 64, 8)
    print(json.dumps(peak_mib(lambda: model.decode(latents))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=128, help="rows and columns of the timed slice; published: 256")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        measure_peak(arguments.peak[0], bool(arguments.peak[1]))
        return
    print(machine())
    compare(arguments.size, arguments.frames, arguments.rounds)
    one, sliced = peak_of_decoding(1, False), peak_of_decoding(6, True)
    print(
        f"decoding one slice of 256×256×32: {one:.0f} MiB; six with slicing: {sliced:.0f} MiB: {sliced / one:.2f} times"
    )


if __name__ == "__main__":
    main()
