"""The words of an audit: what was tested, what that cannot show, and a conclusion that never says "anonymous"."""

from collections.abc import Mapping
from typing import Any

from cardiodit.evaluation.report.numbers import readable

Report = Mapping[str, Any]

# What EDPB Opinion 28/2024 and the literature ask about, and what an audit does about it.
CLASSES = {
    "regurgitation": "Samples that reproduce training patients (regurgitation)",
    "membership_samples": "Membership inference with samples alone",
    "membership_weights": "Membership inference with the weights",
    "reconstruction": "Reconstruction and model inversion with the weights",
    "attributes": "Inference of attributes of a known patient",
    "exfiltration": "Theft of the model or of the training data from where they are kept",
}


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def interval(value: Mapping[str, Any], scale: float = 100, unit: str = "%") -> str:
    """Return `2.1% (0.3 to 4.0%)`, or the value alone without an interval."""
    digits = 1 if unit else 2
    value_, low, high = (
        None if value[k] is None else f"{scale * value[k]:.{digits}f}" for k in ("value", "low", "high")
    )
    return f"{value_}{unit}" if low is None or high is None else f"{value_}{unit} ({low} to {high}{unit})"


def strongest(report: Report) -> Mapping[str, Any]:
    """Return what the detector found that recognized most copies: copies that one detector misses another may find."""
    return max(report["detectors"], key=lambda part: part["copies"]["excess"]["value"])


def tested(report: Report) -> list[dict[str, str | bool]]:
    """Return a line for each class of attacks: whether it was tested, and how or why not."""
    names = ", ".join(part["detector"]["name"] for part in report["detectors"])
    kinds = {attack["needs"] for attack in report["attacks"]}
    why = report["left_out"][0] if report["left_out"] else "the weights were not given, or --noise_levels was 0"
    answers = {
        "regurgitation": (True, f"nearest training patient of every sample; detectors: {names}"),
        "membership_samples": (
            "samples" in kinds,
            "distances to the nearest samples" if "samples" in kinds else "too few samples",
        ),
        "membership_weights": (
            "weights" in kinds,
            "denoising loss at several noise levels" if "weights" in kinds else why,
        ),
        "reconstruction": (
            False,
            "no practical method for diffusion models of volumes is known to us; differential privacy in "
            "training would bound it",
        ),
        "attributes": (False, "depends on what is published beside the model and on what an attacker knows"),
        "exfiltration": (False, "a question of the organisation's security, not of the model"),
    }
    return [{"class": CLASSES[name], "tested": done, "how": how} for name, (done, how) in answers.items()]


def limits(report: Report) -> list[str]:
    sets = report["sets"]
    held_out, samples = sets["held-out"]["patients"], sets["synthetic"]["volumes"]
    sentences = [
        f"{samples} samples were examined; a model that reproduces a patient once in {10 * samples:,} samples would "
        "probably not be noticed.",
        f"The threshold rests on {held_out} held-out patients, so that its level of 5% really lies between "
        f"{percent(report['detectors'][0]['copies']['true_level'][0])} and "
        f"{percent(report['detectors'][0]['copies']['true_level'][1])}.",
        "A copy that no detector recognizes is not counted; the table of planted copies shows which kinds each finds.",
        "Better attacks than these may exist or be found later. Test again when they are, and with every new version "
        "of the weights.",
    ]
    shares = [{kind["title"]: kind["found"] for kind in part.get("sensitivity", ())} for part in report["detectors"]]
    weak = [title for title in shares[0] if all(found.get(title, 0) < 0.5 for found in shares)]
    if weak:
        who = report["detectors"][0]["detector"]["name"] if len(shares) == 1 else "every detector"
        sentences.insert(2, f"Most planted copies of these kinds are missed by {who}: {', '.join(weak)}.")
    return sentences


def conclusion(report: Report) -> list[str]:
    """Return what was found, in sentences for a reader who does not know the methods."""
    most = strongest(report)
    copies, patients, count = most["copies"], most["patients"], len(report["detectors"])
    by = "" if count == 1 else f"By {most['detector']['name']}, which of {count} detectors found most: "
    sentences = [
        f"{by}{percent(copies['observed'])} of the samples are as near to a training patient as only "
        f"{percent(copies['null'])} of held-out patients are: an excess of {interval(copies['excess'])}, "
        f"p = {readable(copies['p_value'])}.",
        f"Among equally many samples and held-out patients, samples come near {percent(patients['observed'])} of the "
        f"training patients and held-out patients near {percent(patients['null'])}: an excess of "
        f"{interval(patients['excess'])}, p = {readable(patients['p_value'])}.",
    ]
    named = sum(sample["is_copy"] for sample in report["samples"])
    rate = percent(most["false_discovery_rate"])
    if named:
        sentences.append(
            f"{named} of {len(report['samples'])} samples are named as copies; at most about {rate} of these are "
            "expected to be named by chance."
        )
    else:
        sentences.append(f"No single sample is named as a copy (false discovery rate {rate}).")
    for needs, words in (("samples", "samples alone"), ("weights", "the weights")):
        attacks = [attack for attack in report["attacks"] if attack["needs"] == needs]
        if attacks:
            best = max(attacks, key=lambda attack: attack["auc"]["value"])
            sentences.append(
                f"Whether a patient was in the training set can be guessed with {words} with an AUC of up to "
                f"{interval(best['auc'], 1, '')} (0.5 is chance; {best['title'].lower()})."
            )
    sentences.append(f"This audit found {_verdict(report)}. It does not show that the model contains no personal data.")
    return sentences


def _verdict(report: Report) -> str:
    excess = [part[key]["excess"]["low"] for part in report["detectors"] for key in ("copies", "patients")]
    members = [attack["auc"]["low"] for attack in report["attacks"]]
    reproduces = any(low > 0 for low in excess) or any(sample["is_copy"] for sample in report["samples"])
    if reproduces:
        return "evidence that the model reproduces training patients"
    if any(low > 0.5 for low in members):
        return (
            "no copies among the samples, but that membership in the training set can be guessed better than by chance"
        )
    return "no evidence that the model reproduces training patients, as far as it was tested"
