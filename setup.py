"""Package `src/cardiodit`, whose links to pipelines, training, configs and checkpoints become real folders."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PAGE_FILES = ("j2", "css", "js")
REPOSITORY = "https://github.com/cardiodit/cardiodit"


def version() -> str:
    text = (ROOT / "src/cardiodit/__init__.py").read_text()
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def description() -> str:
    """Return the README with links and pictures that also lead somewhere outside of the repository."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", text)


setup(
    name="cardiodit",
    version=version(),
    description="Generate 4D cardiac cine MRI and 3D CT with diffusers",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The cardiodit authors",
    url=REPOSITORY,
    project_urls={
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="cardiac MRI, cine, CT, diffusion, transformer, diffusers, medical imaging, synthetic data",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "cardiodit": [
            *(
                f"{folder}/*.{end}"
                for folder in ("_util/html", "viewer", "evaluation/report", "privacy", "energy")
                for end in PAGE_FILES
            ),
            "hub/*.md",
            "dataset_export/*.md",
            "energy/*.csv",
            "training/help/*.txt",
            "py.typed",
            *(f"configs/**/*.{ending}" for ending in ("yaml", "sbatch", "md")),
            *(f"checkpoints/**/*.{ending}" for ending in ("json", "safetensors", "md")),
        ],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.37",
        "accelerate>=1.10",
        "huggingface-hub>=1.3",
        "safetensors>=0.5",
        "nibabel>=5.3",
        "monai>=1.5.2",
        "tqdm>=4.67",
        "numpy>=2.1",
        "scipy>=1.15",
        "Pillow>=11",
        "PyYAML>=6.0.2",
        "jinja2>=3.1",
    ],
    extras_require={
        "xformers": ["xformers"],
        "train": ["tensorboard>=2.18", "lpips>=0.1.4", "torchvision>=0.25"],
        "viz": ["matplotlib>=3.10", "imageio>=2.37"],
        "energy": ["nvidia-ml-py>=12.560"],
        "dicom": ["pydicom>=3.0"],
        "lora": ["peft>=0.18"],
        "deepspeed": ["deepspeed>=0.18", "transformers>=5.0"],  # accelerate asks transformers
        "app": ["gradio>=6.0"],
        "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
        "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=7.0"],
        "release": ["build>=1.3", "twine>=6.2"],
        "track": ["tensorboard>=2.18", "wandb>=0.19", "trackio>=0.2"],
        "dev": [
            "peft>=0.18",
            "pydicom>=3.0",
            "torchao>=0.16,<0.17",
            "transformers>=5.0",
            "tensorboard>=2.18",
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "selenium>=4.30",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "types-PyYAML>=6.0.12",
        ],
    },
    entry_points={"console_scripts": ["cardiodit = cardiodit.cli:main"]},
)
