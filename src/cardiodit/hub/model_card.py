"""The model card of a pipeline that was just trained: what the run knows, and what its owner still has to say."""

import json
from pathlib import Path
from typing import Any

from cardiodit.writing import atomic_file

CARD = """---
library_name: cardiodit
pipeline_tag: unconditional-image-generation
tags:
  - diffusers
  - cardiodit
  - medical-imaging
---

# {name}

Generates {what}. Trained with [cardiodit](https://github.com/cardiodit/cardiodit) {version}.

```python
from cardiodit import CardioDiTPipeline

pipe = CardioDiTPipeline.from_pretrained("{name}")  # this folder, or org/name on the Hub
pipe(num_samples=4, num_inference_steps=25, seed=0{label}).save("samples")
```

## Training

| | |
|---|---|
{rows}

```yaml
{config}```

## To be stated by whoever publishes this

- **Training data**: cohort, consent, scanners, what it lacks.
- **Evaluation**: against how many real volumes, with which features, beside the distance between real and real.
- **Memorization**: a generator can hand out copies of its training patients; do not publish one unaudited.
- **Energy**: kWh and region.

Meant for research. Not for diagnosis, and no evidence about any patient.
"""


def write_card(folder: Path, run: Path) -> None:
    """Writes `README.md` into a pipeline folder from the record of the training run."""
    record = json.loads((run / "run.json").read_text())
    best = json.loads((run / "best" / "state.json").read_text())
    transformer = json.loads((folder / "transformer" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    classes = transformer.get("class_names")
    text = CARD.format(
        name=run.name,
        what="4D cardiac cine MRI" if "4D" in transformer["_class_name"] else "3D volumes",
        version=record["sessions"][-1]["versions"]["cardiodit"],
        label=f', class_labels="{classes[0]}"' if classes else "",
        rows="\n".join(f"| {key} | {value} |" for key, value in _facts(record, best, transformer, vae).items()),
        config=(run / "config.yaml").read_text(),
    )
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _facts(record: dict[str, Any], best: dict, transformer: dict, vae: dict) -> dict[str, Any]:
    sessions = record["sessions"]
    hours = sum(session.get("seconds", 0) for session in sessions) / 3600
    hardware = sorted({f"{session['processes']} × {session['hardware']}" for session in sessions})
    spacing = vae.get("spacing")
    return {
        "Volumes trained on": record["samples"],
        "Labels": ", ".join(transformer.get("class_names") or []) or "none",
        "Voxel size": "unknown" if spacing is None else " × ".join(f"{s:g}" for s in spacing) + " mm",
        "Steps": f"{sessions[-1].get('last_step', best['step'])}, the best of them {best['step']}",
        "Lowest validation loss": f"{best['value']:.5g}",
        "Seed": record["seed"],
        "Hardware": ", ".join(hardware),
        "Duration": f"{hours:.2f} h in {len(sessions)} session{'s' if len(sessions) > 1 else ''}",
        "Versions": ", ".join(f"{name} {version}" for name, version in sessions[-1]["versions"].items()),
    }
