"""Alignment of beats in time: the published results, the inverse, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Intensity, Preprocessing, Volume, write_nifti
from cardiodit.imaging.alignment import (
    KEYFRAMES,
    Beat,
    BeatAlignment,
    circular_weights,
    dtw_positions,
    fourier_weights,
    integer_bounds,
    interval_positions,
    inverse_positions,
    lifted,
    linear_weights,
    make_template,
    piecewise_positions,
    plan_frames,
)
from cardiodit.imaging.manifest import prepare_case, read_manifest, reading_columns

GOLDEN = Path(__file__).parents[1] / "fixtures/golden/temporal_align"
CASES = json.loads((GOLDEN / "cases.json").read_text())
EXPECTED = load_file(GOLDEN / "expected.safetensors")


def assert_matches(ours: np.ndarray, name: str) -> None:
    reference = EXPECTED[name]
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()


def cases_of(method: str) -> list[str]:
    return [name for name, case in CASES.items() if case["method"] == method]


def ordered(keyframes: dict[str, float]) -> list[float]:
    return [keyframes[name] for name in KEYFRAMES]


@pytest.mark.parametrize("name", cases_of("linear"))
def test_linear(name: str) -> None:
    volume, frames = EXPECTED[CASES[name]["input"]], CASES[name]["frames"]
    assert_matches(volume @ linear_weights(volume.shape[-1], frames).T, name)


@pytest.mark.parametrize("name", cases_of("fourier"))
def test_fourier(name: str) -> None:
    """The published code doubles the highest frequency if the smaller number of frames is even; ours follows scipy."""
    volume, frames = EXPECTED[CASES[name]["input"]], CASES[name]["frames"]
    source = volume.shape[-1]
    assert_matches(volume @ fourier_weights(source, frames, as_published=True).T, name)
    from scipy.signal import resample

    ours = volume @ fourier_weights(source, frames).T
    assert np.abs(ours - resample(volume, frames, axis=-1)).max() < 1e-5


@pytest.mark.parametrize("name", cases_of("piecewise"))
def test_piecewise(name: str) -> None:
    case = CASES[name]
    volume, frames, options = EXPECTED[case["input"]], case["frames"], case["options"]
    targets = ordered(options["targets"]) if "targets" in options else [n * frames / 32 for n in (0, 6, 12, 19, 28)]
    if all(0 <= target < 1 for target in targets) and "targets" in options:
        targets = [target * frames for target in targets]
    source = volume.shape[-1]
    positions = piecewise_positions(lifted(ordered(options["keyframes"]), source), targets, frames)
    assert_matches(volume @ circular_weights(positions, source).T, name)


@pytest.mark.parametrize("name", cases_of("template"))
def test_template(name: str) -> None:
    case = CASES[name]
    options = dict(case["options"])
    frames, penalty = options.pop("T_out"), options.pop("non_diagonal_penalty", 1e-3)
    curves = [EXPECTED[curve] for curve in case["descriptors"]]
    keyframes = [ordered(found) for found in case["keyframes"]]
    iterations = options.pop("n_iters")
    template, positions = make_template(curves, keyframes, frames, iterations, penalty=penalty, **options)
    assert positions == pytest.approx(ordered(case["keyframe_positions"]), rel=1e-5)
    assert integer_bounds(positions, frames) == case["template_integer_bounds"]
    assert_matches(np.array(template), name)


@pytest.mark.parametrize("name", cases_of("dtw"))
def test_dtw(name: str) -> None:
    case, options = CASES[name], CASES[name]["options"]
    volume, curve, template = EXPECTED[case["input"]], EXPECTED[options["descriptor"]], EXPECTED[options["template"]]
    how = {
        "max_warp_fraction": options.get("max_warp_fraction", 0.25),
        "penalty": options.get("non_diagonal_penalty", 1e-3),
    }
    if "keyframes" in options:
        ends = ordered(options["template_keyframe_positions"])
        positions = interval_positions(curve, template, ordered(options["keyframes"]), ends, **how)
    else:
        positions = dtw_positions(curve, template, **how, cyclic=options.get("cyclic", True))
    assert_matches(volume @ circular_weights(positions, volume.shape[-1]).T, name)


# --- As a preprocessing step ---

FRAMES, SOURCE = 16, 24
KEYFRAMES_OF_A = tuple(ordered(CASES["piecewise_default"]["options"]["keyframes"]))
TEMPLATE = tuple(EXPECTED["template"].tolist())
ENDS = tuple(ordered(CASES["template"]["keyframe_positions"]))


def a_cine(first_frame: int = 0) -> Volume:
    """A smooth beat whose brightness at (0, 0, 0) follows a cosine, stored from another frame on."""
    phase = 2 * np.pi * np.arange(SOURCE) / SOURCE
    voxels = np.stack([np.cos(phase), np.sin(phase), np.cos(phase) + 0.5], axis=0).reshape(3, 1, 1, SOURCE)
    return Volume(np.roll(voxels, first_frame, axis=3).astype(np.float32), Geometry((1.0, 1.0, 8.0), 0.04))


def steps_for(cycle: str, **alignment: Any) -> Preprocessing:
    settings = BeatAlignment(**alignment) if alignment else None
    return Preprocessing(frames=FRAMES, cycle=cycle, alignment=settings, intensity=Intensity(-2.0, 2.0), orient=False)


ALIGNMENTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "fourier": {},
    "piecewise": {"targets": (0.0, 0.2, 0.35, 0.55, 0.8)},
    "dtw": {"template": TEMPLATE, "template_keyframes": ENDS, "max_warp_fraction": 1.0},
}


@pytest.mark.parametrize("cycle", ALIGNMENTS)
def test_the_inverse_returns_the_beat_on_the_frames_of_the_file(cycle: str) -> None:
    curve = tuple(EXPECTED["descriptor_a"].tolist())
    prepared = steps_for(cycle, **ALIGNMENTS[cycle])(a_cine(), beat=Beat(KEYFRAMES_OF_A, curve))
    assert prepared.volume.voxels.shape == (3, 1, 1, FRAMES)
    assert prepared.volume.geometry.frame_time == pytest.approx(0.04 * SOURCE / FRAMES)
    back = prepared.inverse().voxels
    assert back.shape == (3, 1, 1, SOURCE)
    tolerance = {"fourier": 1e-4, "linear": 0.15, "piecewise": 0.15, "dtw": 0.6}[cycle]
    assert np.abs(back - a_cine().voxels).max() < tolerance
    mask = Volume((a_cine().voxels > 0).astype(np.uint8), a_cine().geometry)
    aligned = prepared.apply_to_mask(mask)
    assert aligned.shape == (3, 1, 1, FRAMES) and set(np.unique(aligned)) == {0, 1}
    assert ((prepared.volume.voxels > 0) == (aligned > 0)).mean() > 0.85


def test_keyframes_lie_where_the_targets_say() -> None:
    prepared = steps_for("piecewise", **ALIGNMENTS["piecewise"])(a_cine(), beat=Beat(KEYFRAMES_OF_A))
    plan = plan_frames("piecewise", SOURCE, 20, BeatAlignment(targets=(0, 0.2, 0.35, 0.55, 0.8)), KEYFRAMES_OF_A)
    assert plan.nearest[[0, 4, 7, 11, 16]].tolist() == list(KEYFRAMES_OF_A)
    assert prepared.timing is not None


def test_settings_survive_a_model_config_and_the_defaults_leave_it_as_it_was() -> None:
    steps = steps_for("dtw", **ALIGNMENTS["dtw"])
    assert Preprocessing.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps
    assert "alignment" not in Preprocessing().to_dict()


def test_a_manifest_states_keyframes_and_curve(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", a_cine(first_frame=5).voxels, a_cine().geometry)
    names = ["image", "subject", *(f"{name.lower()}_frame" for name in KEYFRAMES), "curve"]
    frames = [str((frame + 5) % SOURCE) for frame in KEYFRAMES_OF_A]
    curve = " ".join(map(str, np.roll(EXPECTED["descriptor_a"], 5).tolist()))
    (tmp_path / "m.csv").write_text(",".join(names) + "\n" + ",".join(["a.nii.gz", "p1", *frames, curve]) + "\n")
    (case,) = read_manifest(tmp_path / "m.csv")
    for cycle in ("piecewise", "dtw"):
        steps = replace(steps_for(cycle, **ALIGNMENTS[cycle]), orient=True)
        turned = prepare_case(case, steps).volume.voxels
        beat = Beat(KEYFRAMES_OF_A, tuple(EXPECTED["descriptor_a"].tolist()))
        direct = replace(steps, orient=False)(a_cine(), beat=beat).volume.voxels
        assert np.abs(np.sort(turned.ravel()) - np.sort(direct.ravel())).max() < 1e-5
    bare = replace(case, row={**case.row, "md_frame": ""})
    with pytest.raises(CardioDiTError, match="Piecewise alignment needs the keyframes ED, MS, ES, PF, MD"):
        prepare_case(bare, steps_for("piecewise", **ALIGNMENTS["piecewise"]))
    assert reading_columns(case) != reading_columns(bare)
    assert set(reading_columns(replace(case, row={"es_frame": "3"}))) == {"frame_time", "ed_frame", "slices"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Preprocessing(cycle="linear"), "cycle='linear' of the preprocessing needs the number of frames"),
        (
            lambda: steps_for("resample", targets=(0, 0.1, 0.2, 0.3, 0.4)),
            "alignment of the preprocessing is for piecewise",
        ),
        (lambda: BeatAlignment(targets=(0, 0.2, 0.1, 0.3, 0.4)), "must be 5 rising numbers"),
        (lambda: BeatAlignment(targets=(0, 0.2, 0.3, 0.4, 1.4)), "must be shares of the beat"),
        (lambda: BeatAlignment(max_warp_fraction=0.0), "needs a max_warp_fraction"),
        (lambda: lifted([0, 9, 4, 13, 20], 24), "are not in this order"),
        (lambda: plan_frames("dtw", 8, 4, BeatAlignment(), None, [1.0] * 8), "template with a value for each of the 4"),
        (
            lambda: plan_frames("dtw", 8, 4, BeatAlignment(), None, [1.0] * 7),
            "a value for each of the 8 frames, found 7",
        ),
        (lambda: make_template([[1.0] * 8], [[0, 1, 2, 3, 4]], 8, aggregation="mode"), "must be median or mean"),
    ],
)
def test_what_cannot_be_aligned(make: Any, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        make()


def test_intervals_of_one_frame_are_warped() -> None:
    """The published code needs max_warp_fraction 1 there."""
    keyframes, ends = [0, 1, 9, 13, 20], [0.0, 1.0, 6.0, 9.0, 13.0]
    curve, template = EXPECTED["descriptor_a"], EXPECTED["template"]
    positions = interval_positions(curve, template, keyframes, ends, 0.25, 1e-3)
    assert np.isfinite(positions).all() and (np.diff(positions) >= 0).all()


def test_positions_and_their_inverse() -> None:
    positions = piecewise_positions(lifted([3, 8, 12, 17, 22], 24), [0.0, 3.0, 6.0, 9.0, 13.0], 16)
    back = inverse_positions(positions, 24)
    there = np.interp(back, np.arange(17), [*positions, positions[0] + 24])
    assert np.abs((there - np.arange(24) + 12) % 24 - 12).max() < 1e-9


def test_the_template_of_a_cohort_becomes_a_preprocessing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["image", *(f"{name.lower()}_frame" for name in KEYFRAMES), "curve"]
    lines = [",".join(names)]
    for letter, keyframes in zip("abc", CASES["template"]["keyframes"], strict=True):
        curve = EXPECTED[f"descriptor_{letter}"]
        (tmp_path / f"{letter}.nii.gz").touch()
        lines.append(",".join([f"{letter}.nii.gz", *map(str, ordered(keyframes)), " ".join(map(str, curve.tolist()))]))
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    command = [
        "beat-template",
        "--ids",
        str(tmp_path / "m.csv"),
        "--frames",
        "16",
        "--output",
        str(tmp_path / "t.yaml"),
    ]
    assert main(command) == 0
    section = yaml.safe_load((tmp_path / "t.yaml").read_text())
    steps = Preprocessing.from_dict({**Preprocessing().to_dict(), "frames": 16, "cycle": "dtw", **section})
    assert steps.alignment is not None and steps.alignment.template_keyframes == pytest.approx(ENDS, rel=1e-5)
    assert main(command) == 1 and "already exists" in capsys.readouterr().err
    (tmp_path / "m.csv").write_text("\n".join([*lines[:2], "c.nii.gz,0,4,9,13,20,"]) + "\n")
    assert main([*command[:-1], str(tmp_path / "other.yaml")]) == 1
    assert "c.nii.gz needs ed_frame" in capsys.readouterr().err
