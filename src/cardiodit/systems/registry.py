"""Records of systems, and the registry of all of them.

Classes and functions are named as "package.module:Name" and imported when they are used, so that the command line can
list systems without importing torch. A class or a function itself works as well.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from cardiodit.errors import CardioDiTError

if TYPE_CHECKING:
    from cardiodit.hub.card.model_facts import Model

Reference = str | Callable[..., Any]  # "package.module:Name", or the class or function itself
Rows = dict[str, Any]  # a table of two columns in a model card

# The module of each published system, in the order in which lists show them.
PUBLISHED = tuple(f"cardiodit.systems.{name}" for name in ("cardiodit", "voldit", "medlord", "prdit"))


def load(reference: Reference) -> Any:
    """Import what a reference names."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def name_of(reference: Reference) -> str:
    """Return the name of a referenced class without importing it."""
    return reference.rpartition(":")[2] if isinstance(reference, str) else reference.__name__


def always(config: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One training stage of a system.

    Args:
        script: name of the training script, which `run.json` records.
        title: heading of the stage in a model card.
        component: pipeline component whose weights the stage trains.
        settings: dataclass that describes the stage's config files.
        names_model: whether the run's name becomes the name of the published model.
        trains: whether the script, given a component's config, trains this stage: for scripts that train several
            stages of one component, each on top of the one before.
        open_checkpoint: function that opens a checkpoint of such a run as a pipeline; None if a checkpoint of this
            stage cannot be sampled. See `cardiodit.training.checkpoint_gallery`.
    """

    script: str
    title: str
    component: str
    settings: Reference | None = None
    names_model: bool = True
    trains: Callable[[Mapping[str, Any]], bool] = always
    open_checkpoint: Reference | None = None


@dataclass(frozen=True)
class CardTexts:
    """The parts of a model card that only the system knows.

    Args:
        method: paragraph on how the model works and which publication it follows.
        architecture: rows on the networks, after those on the number of parameters.
        sampler: rows on the noise schedule and the solver.
        limits: sentence on the fine detail that samples cannot be trusted for.
        tags: Hub tags of the method.
    """

    method: Callable[["Model"], str]
    architecture: Callable[["Model"], Rows]
    sampler: Callable[["Model"], Rows]
    limits: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publication:
    """Where a system was published.

    Args:
        title: its title.
        source: authors and year, or the venue.
        link: its address.
    """

    title: str
    source: str
    link: str

    def __str__(self) -> str:
        return f"[*{self.title}*]({self.link}) ({self.source})"


@dataclass(frozen=True)
class PublicModel:
    """A model of a system that can be opened by name.

    Args:
        name: name of a bundled model, or of a repository on the Hub.
        training_set: what it was trained on.
        licence: licence of its weights.
        paper: publication, or where to read about it.
        scale_factor: factor by which latents were multiplied in training, where a repository of the authors does not
            say so; None if it is not known.
        is_authors: whether the repository holds the authors' checkpoints, which are converted on first use.
        files: checkpoints that are downloaded; where a repository does not name them, how they are found.
        config: where the models' sizes come from.
    """

    name: str
    training_set: str
    licence: str
    paper: str
    scale_factor: float | None = None
    is_authors: bool = False
    files: str = ""
    config: str = ""


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        name: identifier on the command line and in config folders.
        title: name of the system as its authors write it.
        summary: what it generates and how, in one sentence.
        dimensions: 4 for cine `(D, H, W, T)`, 3 for volumes `(H, W, D)`.
        pipeline: pipeline class.
        denoiser: model class of the component that denoises.
        scheduler: default scheduler class of a pipeline.
        stages: training stages, in order.
        card: texts for model cards.
        default_steps: denoising steps of a call that gives no number; must equal the pipeline's.
        component: name of the pipeline component that denoises, "transformer" or "unet".
        autoencoder: class of the `vae` component; None if voxels are denoised.
        adapter: class of the component of `control_pipeline` by which masks steer.
        adapter_component: name of that component, "adapter" or "controlnet".
        control_pipeline: pipeline class that is steered by masks.
        converter: function that converts the authors' checkpoints; see `cardiodit convert`.
        models: models that can be opened by name, bundled with the package or public on the Hub.
        publication: what to cite.
    """

    name: str
    title: str
    summary: str
    dimensions: int
    pipeline: Reference
    denoiser: Reference
    scheduler: Reference
    stages: tuple[Stage, ...]
    card: CardTexts
    default_steps: int = 25
    component: str = "transformer"
    autoencoder: Reference | None = None
    adapter: Reference | None = None
    adapter_component: str = "adapter"
    control_pipeline: Reference | None = None
    converter: Reference | None = None
    models: tuple[PublicModel, ...] = ()
    publication: Publication | None = None

    @property
    def is_cine(self) -> bool:
        return self.dimensions == 4

    @property
    def pipelines(self) -> dict[str, Reference]:
        """The pipeline classes by name."""
        classes = (self.pipeline, self.control_pipeline)
        return {name_of(reference): reference for reference in classes if reference is not None}

    @property
    def components(self) -> dict[str, str]:
        """The model class of each component, by the component's name."""
        classes = {"vae": self.autoencoder, self.component: self.denoiser, self.adapter_component: self.adapter}
        return {component: name_of(reference) for component, reference in classes.items() if reference is not None}

    def make_pipeline(self, denoiser: Any, scheduler: Any, vae: Any = None, adapter: Any = None) -> Any:
        """Return a pipeline of these components; one with an adapter is steered by masks."""
        kind = self.pipeline if adapter is None else self.control_pipeline
        if kind is None:
            raise CardioDiTError(f"{self.title} has no pipeline that is steered by masks.")
        components = {"vae": vae, self.component: denoiser, "scheduler": scheduler, self.adapter_component: adapter}
        return load(kind)(**{name: model for name, model in components.items() if model is not None})

    def stages_of(self, configs: Mapping[str, Mapping[str, Any]]) -> list[Stage]:
        """Return the stages that make a model with these component configs.

        Where several stages train one component, those up to the last one that applies have shaped it.
        """
        made: list[Stage] = []
        for component in dict.fromkeys(stage.component for stage in self.stages):
            if component not in configs:
                continue
            stages = [stage for stage in self.stages if stage.component == component]
            applying = [place for place, stage in enumerate(stages) if stage.trains(configs[component])]
            made += stages[: applying[-1] + 1] if applying else []
        return sorted(made, key=self.stages.index)


PLUGINS = "cardiodit.systems"  # entry points by which other packages add their systems
_EXTRA: list[System] = []


@cache
def _installed() -> tuple[System, ...]:
    plugins = sorted(entry_points(group=PLUGINS), key=lambda plugin: plugin.name)
    return (*(import_module(module).SYSTEM for module in PUBLISHED), *(plugin.load() for plugin in plugins))


def all_systems() -> tuple[System, ...]:
    """Return the published systems, those of installed packages and those that were registered."""
    return (*_installed(), *_EXTRA)


def register(system: System) -> System:
    """Add a system of your own; its name and its pipelines' names must be new."""
    taken = {system.name, *system.pipelines} & {name for s in all_systems() for name in (s.name, *s.pipelines)}
    if taken:
        raise CardioDiTError(f"A system or pipeline named {', '.join(sorted(taken))} is already registered.")
    _EXTRA.append(system)
    return system


@contextmanager
def registered(system: System) -> Iterator[System]:
    """Register a system for the duration of a block."""
    register(system)
    try:
        yield system
    finally:
        _EXTRA.remove(system)


def find_system(name: str) -> System:
    """Return the system with an identifier such as "cardiodit"."""
    for system in all_systems():
        if system.name == name:
            return system
    raise CardioDiTError(f"Unknown system {name!r}; available: {', '.join(s.name for s in all_systems())}.")


def system_of_pipeline(class_name: str) -> System:
    """Return the system that a pipeline class belongs to."""
    for system in all_systems():
        if class_name in system.pipelines:
            return system
    known = ", ".join(name for system in all_systems() for name in system.pipelines)
    raise CardioDiTError(f"Unknown pipeline {class_name}; this version of cardiodit knows {known}.")


def system_of(script: str | None = None, **traits: Any) -> System:
    """Return the first system with the given traits.

    Args:
        script: a training script of the system.
        traits: `dimensions`, or `denoiser` or a component name with the model (or the name of its class) that it must
            have, such as `denoiser=model` or `vae="VQModel3D"`.
    """
    for system in all_systems():
        if script is not None and script not in {stage.script for stage in system.stages}:
            continue
        if all(_has(system, trait, value) for trait, value in traits.items()):
            return system
    described = ", ".join(f"{trait} {_shown(value)}" for trait, value in traits.items())
    raise CardioDiTError(f"None of the systems {', '.join(s.title for s in all_systems())} has {described}.")


def _has(system: System, trait: str, value: Any) -> bool:
    if trait == "dimensions":
        return bool(system.dimensions == value)
    component = system.component if trait == "denoiser" else trait
    return system.components.get(component) == _shown(value)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else type(value).__name__


def public_models() -> list[tuple[System, PublicModel]]:
    """Return all models that can be opened by name, with their systems."""
    return [(system, model) for system in all_systems() for model in system.models]


def stages_by_script(script: str) -> list[tuple[System, Stage]]:
    """Return every stage that a training script trains, with its system."""
    return [(system, stage) for system in all_systems() for stage in system.stages if stage.script == script]
