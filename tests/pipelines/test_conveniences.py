"""What diffusers offers for any pipeline, shown on ours by its effect."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, DDIMScheduler, FirstBlockCacheConfig
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open

from cardiodit import CardioDiTError, CardioDiTPipeline, DiT4DTransformerModel, TGCAAdapterModel, VQModel4D

LABELLED = {"num_classes": 2, "class_dropout_prob": 0.1}


def volumes(pipe: CardioDiTPipeline, **call: object) -> torch.Tensor:
    return pipe(**{"seed": 0, "num_inference_steps": 4, **call}).volumes


@pytest.fixture
def adapter(make_pipe: Callable, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A trained-like LoRA on disk, written as training scripts write it, and what it makes of seed 0."""
    pipe = make_pipe()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    for name, parameter in pipe.transformer.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    CardioDiTPipeline.save_lora_weights(
        tmp_path / "lora",
        get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict(),  # with its alpha
    )
    return tmp_path / "lora", volumes(pipe, output_type="latent")


def latents(pipe: CardioDiTPipeline) -> torch.Tensor:
    return volumes(pipe, output_type="latent")


def test_lora_weights_are_loaded_scaled_fused_and_taken_off(make_pipe: Callable, adapter: tuple) -> None:
    folder, expected = adapter
    pipe = make_pipe()
    plain = latents(pipe)
    pipe.load_lora_weights(folder, adapter_name="site")
    assert pipe.get_active_adapters() == ["site"] and pipe.get_list_adapters() == {"transformer": ["site"]}
    assert torch.allclose(latents(pipe), expected, atol=1e-6) and not torch.allclose(expected, plain, atol=1e-3)
    pipe.set_adapters("site", 0.0)
    assert torch.allclose(latents(pipe), plain, atol=1e-6)
    pipe.set_adapters("site", 1.0)
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1 and torch.allclose(latents(pipe), expected, atol=1e-5)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert torch.allclose(latents(pipe), plain, atol=1e-5)
    pipe.unload_lora_weights()
    assert not any("lora" in name for name in pipe.transformer.state_dict())


def test_adapters_are_safetensors_and_nothing_else(make_pipe: Callable, adapter: tuple, tmp_path: Path) -> None:
    folder, expected = adapter
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as content:
        assert all(name.startswith("transformer.") and "lora" in name for name in content.keys())  # noqa: SIM118  no dict
    pipe = make_pipe()
    pipe.load_lora_weights(str(folder), weight_name=file.name)
    assert torch.allclose(latents(pipe), expected, atol=1e-6)
    torch.save({"transformer.x.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(CardioDiTError, match="may contain pickled code, so it was not opened"):
        make_pipe().load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.bin")
    with pytest.raises(CardioDiTError, match="may contain pickled code, so it was not opened"):
        make_pipe().transformer.load_lora_adapter(tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(CardioDiTError, match="not LoRA weights"):
        pipe.load_lora_weights({"transformer.proj_out.weight": torch.zeros(1)})
    with pytest.raises(CardioDiTError, match="safetensors only"):
        CardioDiTPipeline.save_lora_weights(tmp_path, {"x": torch.zeros(1)}, safe_serialization=False)
    with pytest.raises(CardioDiTError, match="requires transformer_lora_layers"):
        CardioDiTPipeline.save_lora_weights(tmp_path)


def test_from_pipe_shares_the_parts(make_pipe: Callable) -> None:
    pipe = make_pipe()
    other = CardioDiTPipeline.from_pipe(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    other.set_progress_bar_config(disable=True)
    assert other.transformer is pipe.transformer and other.vae is pipe.vae
    assert not torch.allclose(volumes(other), volumes(pipe))


def test_automodel_opens_components_of_a_folder(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    for name, cls in (("transformer", DiT4DTransformerModel), ("vae", VQModel4D)):
        model = AutoModel.from_pretrained(str(tmp_path), subfolder=name)
        assert type(model) is cls
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor)


def test_variants_and_shards_of_a_whole_pipeline(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    assert list((tmp_path / "variant").rglob("*.fp16.safetensors"))
    loaded = CardioDiTPipeline.from_pretrained(tmp_path / "variant", variant="fp16")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(volumes(loaded), volumes(pipe))
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards/transformer").glob("*.safetensors"))) > 1
    loaded = CardioDiTPipeline.from_pretrained(tmp_path / "shards")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(volumes(loaded), volumes(pipe))


def test_group_offload_of_all_components_computes_the_same(make_pipe: Callable) -> None:
    """The codebook is a parameter that is used inside the quantiser, so it comes and goes with it."""
    pipe = make_pipe()
    expected = volumes(pipe)
    pipe.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    assert hasattr(pipe.vae.quantizer, "_diffusers_hook") or any(
        hasattr(module, "_diffusers_hook") for module in pipe.vae.modules()
    )
    assert torch.equal(volumes(pipe), expected)


def test_the_autoencoder_runs_its_hooks_on_encode_and_decode(make_vae: Callable) -> None:
    """`enable_model_cpu_offload` moves a component when its hook is run, which `forward` alone would not do here."""
    vae = make_vae()
    calls = []

    class Hook:
        def pre_forward(self, module: torch.nn.Module) -> None:
            calls.append(module)

    vae._hf_hook = Hook()
    image = torch.zeros(1, 1, 16, 16, 8)
    vae.decode(vae.encode(image).latents)
    assert calls == [vae, vae]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_model_offload_without_a_gpu_says_so(make_pipe: Callable) -> None:
    with pytest.raises(RuntimeError, match="accelerator"):
        make_pipe().enable_model_cpu_offload()


def test_caches_keep_the_two_branches_of_guidance_apart(make_pipe: Callable) -> None:
    pipe = make_pipe(**LABELLED, num_layers=3)
    call = {"class_labels": 1, "guidance_scale": 2.0, "num_inference_steps": 8, "output_type": "latent"}
    exact = volumes(pipe, **call)
    calls = [0, 0]
    for i in (0, 2):
        pipe.transformer.transformer_blocks[i].ff.register_forward_hook(
            lambda *_, i=i: calls.__setitem__(i // 2, calls[i // 2] + 1)
        )
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    cached = volumes(pipe, **call)
    assert calls[0] == 16 > calls[1] >= 2  # two branches of eight steps; the last block was spared some of them
    assert 0 < (cached - exact).norm() / exact.norm() < 0.2
    assert torch.equal(volumes(pipe, **call), cached)  # a second run begins with an empty cache


def test_a_compiled_pipeline_samples_the_same(make_pipe: Callable) -> None:
    pipe = make_pipe()
    expected = latents(pipe)
    torch.compiler.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    assert torch.allclose(latents(pipe), expected, atol=1e-4)


def test_what_runs_before_a_forward_pass_runs_the_hooks_too(make_dit: Callable) -> None:
    """With model offload, an adapter embeds masks and time while its weights and the transformer's are still away."""
    base, calls = make_dit(), []
    adapter = TGCAAdapterModel(32, 2, 4, channels=(4, 8), strides=((2, 2, 2),))

    class Hook:
        def pre_forward(self, module: torch.nn.Module) -> None:
            calls.append(module)

    base._hf_hook = adapter._hf_hook = Hook()
    latents = torch.zeros(1, *base_latents(base))
    adapter.embed(torch.zeros(1, 1, 2, 16, 16, 16), base, base.grid_of(latents.shape[2:]))
    base.embed_time(latents, 1)
    assert calls == [adapter, base]


def base_latents(base: torch.nn.Module) -> tuple[int, ...]:
    return (base.config.in_channels, *base.config.sample_size)


def test_a_pipeline_in_half_precision_quantises_in_full_precision(make_pipe: Callable) -> None:
    pipe = make_pipe()
    pipe.vae.to(torch.bfloat16)
    seen = []
    pipe.vae.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    assert pipe(num_inference_steps=1, seed=0).volumes.isfinite().all()
    assert set(seen) == {torch.float32}
