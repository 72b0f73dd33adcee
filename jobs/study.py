"""The study file: one YAML document that describes a whole study, read into immutable structs.

Nothing here imports torch, so that a login node can read and plan a study.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

import msgspec

from curricula.core_yaml import dump_yaml
from curricula.curriculum.config import MOST_TOKENS, Along, AnyStage, Curriculum, ReplicateDraws, Source, Tokenizer, Tuning
from curricula.curriculum.plan import (
    DEFAULT_SEED,
    TRUNK,
    Arm,
    Budget,
    Replicate,
    arms_of,
    percent,
    replicates_of,
    safe_only_arm,
)
from curricula.curriculum.sources.conversations import POOLS, TuningSet
from curricula.curriculum.sources.declared import anchor, anchor_keys, declared_in
from curricula.curriculum.stages import BASE, StageTree, stage_tree, written_out
from curricula.curriculum.sweep import Sweep, variants_of
from curricula.curriculum.tree import Line, Segment, TrainingTree, branch_of, lines_of, training_tree
from curricula.curriculum.world.fiction import WorldConfig
from curricula.eval.config import FULL, EvalConfig, Probes, Tasks
from curricula.eval.tasks import TASKS, EvalTask
from curricula.model import TrackingConfig, TrainConfig
from curricula.model.config import ModelConfig, check_layout, decay_start, warmup_steps
from curricula.model.study import Finetuning, Model, Pretraining, Resources, sized, train_config_of
from curricula.provenance import PACKAGE
from curricula.settings import NonNegative, Settings, changed, located, parse, read_yaml, require_distinct, require_known

STUDIES = PACKAGE / "jobs" / "studies"
"""The folder of the studies that come with the suite."""
SAVING = ("save_interval_steps", "save_interval_minutes", "keep_last")
"""Settings of pretraining that no weight depends on."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A name that can be part of a path, a job's name and an option."""


class Study(Settings, frozen=True, dict=True):
    """A whole study: what is read, trained and measured, and with which resources."""

    name: str
    """A plain word: the name of the run folder, and of jobs in the queue."""
    tokenizer: Tokenizer
    """Where the tokenizer comes from."""
    sources: dict[str, Source]
    """Streams of pretraining text, by the names that mixes use."""
    curriculum: Curriculum
    """Which sources arms read, and when."""
    model: Model
    """What is trained."""
    pretraining: Pretraining
    """How each arm is pretrained."""
    tuning: Finetuning | None = None
    """The paper's two stages after pretraining; null leaves both out."""
    stages: dict[str, AnyStage] = {}
    """Further stages after pretraining, by the name of the model that each makes."""
    tuning_sets: dict[str, TuningSet] = {}
    """Tuning sets of your own, by the names that mixes of stages use."""
    evaluation: EvalConfig = EvalConfig()
    """What is measured, how it is decoded and who judges it."""
    resources: Resources = Resources()
    """What jobs ask of a cluster or of this machine."""
    world: WorldConfig | None = None
    """Make a fictional world of data first, and read every dataset from it."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the curves of training go."""
    seed: int | None = None
    """Short for `seeds` with this single seed; 42 if neither is given."""
    seeds: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] | None = None
    """Train every arm once with each of these seeds. The first one draws what all replicates share."""
    replicate: ReplicateDraws = ReplicateDraws()
    """What each seed after the first draws for itself."""
    validation_documents: NonNegative = 64
    """Documents of each source that are held out of training."""
    sweep: Sweep | None = None
    """Run the study at several points: keys of the study with a list of values each (all combinations), or an explicit list of
    points."""

    def check(self) -> None:
        self._check_seeds()
        if self.sweep is not None:
            msgspec.structs.replace(self, sweep=None)  # checks the rest
            self._check_sweep()
            return
        self._check_names()
        self._check_sources()
        self._check_sizes()
        self._check_arms()
        self._check_stages()
        self._check_evaluation()
        _ = self.segments  # raises if a start leaves an arm no step

    def _check_seeds(self) -> None:
        """Check the seeds, and set `seed` for one and `seeds` for several, so that equal studies compare equal."""
        self.require_one("seed", "seeds", or_none=True)
        seeds = self.seeds or (DEFAULT_SEED if self.seed is None else self.seed,)
        require_distinct("seeds", seeds)
        is_one = len(seeds) == 1
        msgspec.structs.force_setattr(self, "seed", seeds[0] if is_one else None)
        msgspec.structs.force_setattr(self, "seeds", None if is_one else seeds)
        draws_weights = self.replicate.init and not self.model.weights
        if not (is_one or draws_weights or self.replicate.data):
            why = "model.weights is given" if self.replicate.init else "replicate.init is false"
            raise ValueError(
                f"replicate.data is false and {why}, so all seeds would pretrain the same model; set replicate.data to true"
            )

    def _check_names(self) -> None:
        for what, names, taken in (
            ("name", [self.name], []),
            ("source", self.sources, []),
            ("tuning set", self.tuning_sets, []),
            ("intervention set", self.curriculum.interventions, ["safe", "none"]),
            ("arm", self.curriculum.arms, [TRUNK, "none", *self.curriculum.interventions]),
            ("stage", self.stages, [BASE, TRUNK, "all", "none"]),  # and `STAGES`: see `plan_study`
        ):
            for name in names:
                if name in taken or not PLAIN_NAME.fullmatch(name):
                    raise ValueError(
                        f"{what} {name!r} must be at most 100 letters, digits, '.', '_' and '-', begin with a letter or digit, "
                        "and differ from the names that the suite itself uses and, for an arm, from those of intervention sets"
                    )

    def _check_sources(self) -> None:
        for where, mix in self.curriculum.mixes().items():
            require_known(f"mix {where!r}", mix, self.sources)
        for arm, phases in self.curriculum.arms.items():
            for phase in phases:
                require_known(f"arm {arm!r}", self.curriculum.mix(phase), self.sources)
        for key, table in declared_in(self):
            if self.world and table.hub is not None:
                raise ValueError(f"{key}.hub is {table.hub!r}, but a study with a world fetches nothing; name files in `path`")

    def _check_sizes(self) -> None:
        pretraining, resources = self.pretraining, self.resources
        trained, expected = self.tokenizer.train, self.model.resolve().vocabulary
        if trained is not None and trained != expected:
            raise ValueError(
                f"tokenizer.train makes {trained} entries, but the model has a vocabulary of {expected}; set tokenizer.train "
                f"to {expected}, or model.vocabulary to {trained}"
            )
        with located("resources"):
            check_layout(self.model.resolve(), resources.tensor_parallel, resources.engine)
        if self.budget.requested_tokens > MOST_TOKENS:
            raise ValueError(f"pretraining.tokens_per_parameter is {pretraining.tokens_per_parameter:g}; give a smaller number")
        if self.budget.steps < 1:
            raise ValueError(
                f"budget_tokens {self.budget.requested_tokens} is less than one step of {self.budget.step_tokens} tokens"
            )
        if (interval := pretraining.validation_interval_steps) and not self.validation_documents:
            raise ValueError(
                f"pretraining.validation_interval_steps is {interval}, but validation_documents is 0, so nothing is held out "
                "to validate on; change one of them"
            )
        if pretraining.global_batch % pretraining.micro_batch:
            raise ValueError(
                f"global_batch {pretraining.global_batch} is not a multiple of micro_batch {pretraining.micro_batch}"
            )

    def _check_keys(self) -> None:
        """Check that no two trainings, of any points and seeds, have the same name."""
        keys = Counter([*(arm.key for arm in self.trainings), *(one.named(TRUNK) for one in self.replicates)])
        key, count = keys.most_common(1)[0]
        if count > 1:
            raise ValueError(f"two starts, arms, points or seeds give the name {key}; write fewer digits, or rename one")

    def _check_arms(self) -> None:
        self._check_keys()
        steps: dict[str, int] = {}
        for arm in self.arms:
            if arm.cooldown is not None and self.pretraining.schedule.kind != "warmup-stable-decay":
                raise ValueError(
                    f"arm {arm.name} has a cooldown, but pretraining.schedule.kind is {self.pretraining.schedule.kind!r}; set "
                    "that to warmup-stable-decay"
                )
            for phase in arm.blend_phases(self.budget):  # raises if a phase is shorter than a step
                if self._trains_nothing(phase.mix):
                    raise ValueError(
                        f"arm {arm.name}: all sources of a phase have loss: none, so it would train nothing; mix in another"
                    )
            step = self.budget.step_at(arm.start)
            if steps.setdefault(percent(arm.start), step) != step:
                raise ValueError(
                    f"arm {arm.name} starts so close to another arm that their job names coincide; move or merge them"
                )

    def _trains_nothing(self, mix: Any) -> bool:
        return all(self.sources[name].loss == "none" for name, weight in mix.items() if weight)

    def _check_stages(self) -> None:
        for name in self.tuning.stages if self.tuning else ():
            if name in self.stages:
                raise ValueError(f"stages and tuning both define {name}; keep one of them")
        arms = dict.fromkeys([*self.curriculum.interventions, *self.curriculum.arms, *(arm.name for arm in self.arms)])
        sets = {**POOLS, **self.tuning_sets}
        for name, stage in self.tree.stages.items():
            place = self.place_of(name)
            if isinstance(stage, Tuning):
                require_known(f"{place}.mix", stage.mix, sets)
                require_known(f"{place}.tagged_harmful", stage.tagged_harmful, arms)
                if stage.refusals and not any(sets[pool].may_refuse for pool, weight in stage.mix.items() if weight):
                    raise ValueError(
                        f"{place}.refusals is {stage.refusals:g}, but no set of its mix ({', '.join(stage.mix)}) has labels of "
                        "refusals; leave it out, or mix in another"
                    )
            else:
                require_known(f"{place}.mix", stage.mix, self.sources)
                if self._trains_nothing(stage.mix):
                    raise ValueError(f"{place}.mix has only sources with loss: none, so it would train nothing; mix in another")
            at = None if stage.at is None else self.budget.step_at(stage.at)
            if at is not None and not 0 < at < self.budget.steps:
                raise ValueError(f"{place}.at is {stage.at:g}, which is step {at:,} of {self.budget.steps:,}; move it")
            if stage.along and (steps := stage.total_steps):
                with located(place):
                    stage.along.steps(steps)
        if self.pretraining.along:
            with located("pretraining"):
                self.pretraining.along.steps(self.budget.steps)

    def _check_sweep(self) -> None:
        for name, variant in self.variants.items():
            if (self.model.weights or variant.model.weights) and variant.model != self.model:
                raise ValueError(f"sweep varies the model in point {name}, but model.weights is given; leave one of them out")
            if variant.first_seed != self.first_seed:
                raise ValueError(
                    f"sweep, point {name}: the first of seeds is {variant.first_seed}, but the study's is {self.first_seed}, "
                    "which draws the data; begin with that one"
                )
            for stage in variant.tree.stages.keys() & self.tree.stages.keys():
                if type(variant.tree.stages[stage]) is not type(self.tree.stages[stage]):
                    raise ValueError(f"sweep changes the kind of stages.{stage} in point {name}; write another stage")
        self._check_keys()
        _ = self.segments, self.stage_names

    def _check_evaluation(self) -> None:
        evaluation = self.evaluation
        has_benign = "benign" in self.tree.stages
        if evaluation.tasks == FULL and not has_benign:
            msgspec.structs.force_setattr(evaluation, "tasks", msgspec.structs.replace(FULL, benign=()))
        if self.tuning and evaluation.task_lists.benign and not has_benign:
            raise ValueError("evaluation.tasks.benign names tasks, but tuning.benign is null; set the tasks to []")
        for place, names in self._named_tasks():
            require_distinct(place, names)
            require_known(place, names, TASKS)
            measured = {TASKS[name].kind for name in names}
            if "transfer" in measured and place.endswith(".along.tasks"):
                raise ValueError(f"{place} names transfer, which is only tried on finished models; remove it")
            if "transfer" in measured and "gcg" not in measured:
                raise ValueError(f"{place} names transfer without gcg, which finds the suffixes; add gcg there")
        arms = [arm.name for arm in self.arms]
        require_known("evaluation.attacks.suffixes_of", evaluation.attacks.suffixes_of, arms)
        for name in evaluation.attacks.suffixes_of:
            for stage, having in self.tree.arms.items():
                if name not in having and any(TASKS[task].kind == "transfer" for task in self.tasks_of(stage)):
                    raise ValueError(
                        f"evaluation.attacks.suffixes_of names arm {name}, which has no stage {stage} to find suffixes for its "
                        f"task transfer; name an arm that has it, or leave transfer out of {self.place_of(stage)}.tasks"
                    )
        if "world" in (evaluation.judge_of("attack").name, evaluation.judge_of("overrefusal").name) and not self.world:
            raise ValueError("evaluation.judge is 'world', but the study has no world; use refusal-phrases")
        for layer in self.used_probes.layers if self.used_probes else ():
            if isinstance(layer, int) and layer > (count := self.model.resolve().layers):
                raise ValueError(f"evaluation.probes.layers names layer {layer}, but the model has {count}; choose a lower one")
        evaluation.check_tasks({name for _, names in self._named_tasks() for name in names})

    def _named_tasks(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every list of tasks with its key in the study file."""
        for name in (BASE, *self.tree.stages):
            place, default = self.place_of(name), self._default_tasks(name)
            is_own = name != BASE and self.tree.stages[name].tasks is not None
            yield f"{place}.tasks" if is_own else f"evaluation.tasks.{default}", self.tasks_of(name)
            if along := self.along(name):
                yield f"{place}.along.tasks", along.tasks

    def _default_tasks(self, name: str) -> str:
        """The list of `evaluation.tasks` that applies to a stage without a list of its own."""
        if name in Tasks.__struct_fields__:
            return name
        return "base" if self.tree.is_raw(name) else "instruct"

    def place_of(self, name: str) -> str:
        """The key of a stage, or of "base", in the study file."""
        if name == BASE:
            return "pretraining"
        return f"stages.{name}" if name in self.stages else f"tuning.{name}"

    @cached_property
    def tree(self) -> StageTree:
        """All stages after pretraining, those of `tuning` first, with all their defaults written out."""
        given: dict[str, AnyStage] = {**(self.tuning.stages if self.tuning else {}), **self.stages}
        pretraining, length, mixes = self.pretraining, self.budget.sequence_length, self.curriculum.mixes()
        batches = pretraining.global_batch, pretraining.micro_batch
        resolved = {name: written_out(name, stage, *batches, length, mixes) for name, stage in given.items()}
        arms, places = list(dict.fromkeys(arm.name for arm in self.arms)), {name: self.place_of(name) for name in given}
        return stage_tree(resolved, arms, places)

    @cached_property
    def stage_names(self) -> list[str]:
        """The stages of all points, each after every stage that it continues from at any point."""
        if self.sweep is None:
            return list(self.tree.stages)
        trees = [variant.tree for variant in self.variants.values()]
        names = dict.fromkeys(name for tree in trees for name in tree.stages)
        before = {name: [tree.parent(name) for tree in trees if name in tree.stages] for name in names}
        try:
            return [name for name in TopologicalSorter(before).static_order() if name != BASE]
        except CycleError as error:
            circle = " from ".join(error.args[1])
            raise ValueError(f"sweep: its points order these stages in contradictory ways ({circle}); rename one") from None

    def train_config(self, name: str) -> TrainConfig:
        return train_config_of(self.tree.stages[name], self.pretraining, self.tuning)

    @property
    def tunings(self) -> list[Tuning]:
        stages = [stage for point in self.variants.values() for stage in point.tree.stages.values()]
        return [stage for stage in stages if isinstance(stage, Tuning)]

    def along(self, name: str) -> Along | None:
        """What is measured while the model of a stage, or "base", is trained."""
        return self.pretraining.along if name == BASE else self.tree.stages[name].along

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """The tasks of the finished model of a stage, or of "base"."""
        own = None if name == BASE else self.tree.stages[name].tasks
        return getattr(self.evaluation.task_lists, self._default_tasks(name)) if own is None else own

    def eval_tasks(self, name: str, on_the_way: bool = False) -> list[EvalTask]:
        """The evaluation of a stage's finished model, or of those `on_the_way` to it, in the order in which it runs."""
        along = self.along(name)
        names, most = (along.tasks, along.prompts) if on_the_way and along else (self.tasks_of(name), None)
        return self.evaluation.battery(names, self.tree.is_raw(name), most)

    @property
    def all_eval_tasks(self) -> list[EvalTask]:
        """The evaluations of all models, both finished and on the way."""
        stages = [(point, name) for point in self.variants.values() for name in (BASE, *point.tree.stages)]
        return [task for point, name in stages for on_the_way in (False, True) for task in point.eval_tasks(name, on_the_way)]

    @property
    def used_probes(self) -> Probes | None:
        """The settings of probes, if any model is probed."""
        return self.evaluation.probes if any(task.task.kind == "probes" for task in self.all_eval_tasks) else None

    def prompts_in(self, benchmark: str, limit: int | None) -> int:
        """The approximate number of a benchmark's prompts that are asked; the same at every point of a sweep."""
        return self.whole.evaluation.prompts_in(benchmark, limit, self.world)

    @property
    def used_benchmarks(self) -> list[str]:
        """Every benchmark that some task reads."""
        return self.evaluation.benchmarks_of(self.all_eval_tasks)

    @property
    def distorted(self) -> set[str]:
        """Every benchmark whose prompts best-of-n distorts."""
        return {task.benchmark for task in self.all_eval_tasks if task.task.kind == "best-of-n"}

    def segment_at(self, arm: Arm, step: int) -> Segment:
        """The segment of the training tree that makes the checkpoint of `arm` at `step`."""
        return next(segment for segment in self.path(arm) if segment.start < step <= segment.stop)

    def path(self, arm: Arm) -> list[Segment]:
        """The segments that train `arm`, from the first step to the last."""
        tree = self.whole.training_tree
        return tree.chain(tree.branches.get(arm.key, branch_of(arm)))

    def beginnings(self) -> Iterator[tuple[str, str, int]]:
        """The points of pretraining at which stages begin: for each model, the stage, the branch and the step."""
        for point in self.whole.variants.values():
            for name, stage in point.tree.stages.items():
                if stage.at is None:
                    continue
                step = point.budget.step_at(stage.at)
                for arm in point.trainings:
                    if arm.name in point.tree.arms[name]:
                        yield name, point.segment_at(arm, step).branch, step

    def kept_steps(self, branch: str) -> set[int]:
        """The steps at which stages begin on a branch or models are measured, besides the ends of its segments."""
        kept = {step for _, begins_on, step in self.beginnings() if begins_on == branch}
        for point in self.whole.variants.values():
            if point.pretraining.along:
                kept.update(point.pretraining.along.steps(point.budget.steps).values())
        return kept

    @cached_property
    def budget(self) -> Budget:
        model, pretraining = self.model.resolve(), self.pretraining
        tokens = pretraining.budget_tokens or round((pretraining.tokens_per_parameter or 0) * model.parameters)
        return Budget(tokens, model.sequence_length, pretraining.global_batch)

    @cached_property
    def variants(self) -> dict[str, Study]:
        """The studies of the sweep's points by name; without a sweep, this study under the empty name."""
        if self.sweep is None:
            return {"": self}
        variants = variants_of(self, self.sweep)
        for name, variant in variants.items():  # drop its cached properties, which were computed without its name
            vars(variant).clear()
            vars(variant).update(variant=name, whole=self)
        return variants

    @property
    def variant(self) -> str:
        """The name of the sweep's point whose study this is; empty without a sweep, and for the study with the sweep."""
        return vars(self).get("variant", "")

    @property
    def whole(self) -> Study:
        """The study with the sweep; without one, this study."""
        return vars(self).get("whole", self)

    def of(self, arm: Arm) -> Study:
        """The study of the point that an arm belongs to."""
        return self.at(arm.replicate.variant)

    def at(self, variant: str) -> Study:
        """The study of a point, by its name; this study if the name is empty."""
        return self.variants[variant] if variant else self

    @cached_property
    def replicates(self) -> tuple[Replicate, ...]:
        """The replicates: one for each seed at each point."""
        if self.sweep is not None:
            return tuple(replicate for variant in self.variants.values() for replicate in variant.replicates)
        seeds = self.seeds or (DEFAULT_SEED if self.seed is None else self.seed,)
        return replicates_of(seeds, self.replicate, self.variant)

    def replicate_of(self, seed: int | None, variant: str = "") -> Replicate:
        return self._replicates[seed, variant or self.variant]

    @cached_property
    def _replicates(self) -> dict[tuple[int | None, str], Replicate]:
        return {(replicate.seed, replicate.variant): replicate for replicate in self.replicates}

    @property
    def first_seed(self) -> int:
        """The seed that draws what replicates share."""
        return self.replicates[0].seed

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm once, as the first replicate trains it."""
        return tuple(arm for arm in self.trainings if arm.replicate.seed == self.first_seed)

    @cached_property
    def trainings(self) -> tuple[Arm, ...]:
        """Every arm of every replicate, one replicate after the other."""
        if self.sweep is not None:
            return tuple(arm for variant in self.variants.values() for arm in variant.trainings)
        arms = arms_of(self.curriculum, self.budget)
        return tuple(replace(arm, replicate=replicate) for replicate in self.replicates for arm in arms)

    def training(self, arm: str, seed: int | None) -> Arm:
        replicate = self.replicate_of(seed)
        if arm == TRUNK:
            return safe_only_arm(self.curriculum, replicate)
        return next(training for training in self.trainings if (training.name, training.replicate) == (arm, replicate))

    @cached_property
    def groups(self) -> dict[str, list[Arm]]:
        """The trainings that leave the trunk at the same step, by the name that their jobs share, the earliest first."""
        groups: dict[str, list[Arm]] = defaultdict(list)
        for name, point in self.variants.items():
            by_step: dict[int, list[Arm]] = defaultdict(list)
            for arm in point.trainings:
                by_step[point.budget.step_at(arm.start)].append(arm)
            for _, arms in sorted(by_step.items()):
                groups[percent(arms[0].start) + self.class_of(name)] += arms
        return dict(groups)

    def class_of(self, variant: str) -> str:
        """The suffix of a point's job names: empty if the models and budgets of all points have the same size."""
        first, point = self._first_of_size, self.variants[variant]
        return f".{first[point.model.resolve(), point.budget]}" if len(first) > 1 else ""

    @cached_property
    def _first_of_size(self) -> dict[tuple[ModelConfig, Budget], str]:
        """The first point with each size of model and budget."""
        return {(point.model.resolve(), point.budget): name for name, point in reversed(self.variants.items())}

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.whole.training_tree.segments

    @cached_property
    def training_tree(self) -> TrainingTree:
        return training_tree([line for point in self.variants.values() for line in point.lines])

    @property
    def lines(self) -> list[Line]:
        """The trainings with everything that their pretraining depends on."""
        pretraining, steps = self.pretraining, self.budget.steps
        schedule, warmup = pretraining.schedule, warmup_steps(steps, pretraining.schedule)
        fixed = {"decay_fraction": 0.0, "warmup_fraction": None, "warmup_steps": warmup}
        settings = {**msgspec.to_builtins(pretraining), "schedule": msgspec.to_builtins(schedule) | fixed}
        for key in ("budget_tokens", "tokens_per_parameter", *SAVING):
            del settings[key]
        points = pretraining.along.steps(steps) if pretraining.along else None  # their labels are folders' names
        recipe = msgspec.json.encode((self.model.resolve(), settings, points))
        return lines_of(self.trainings, self.curriculum, self.budget, decay_start(steps, schedule), recipe)

    @cached_property
    def owners(self) -> dict[tuple[str, str], str]:
        """The key of the training that makes each model, by the key of a training that has it and its stage. The first of those
        whose models would be equal makes it for all."""
        first: dict[tuple[Any, ...], str] = {}
        owners: dict[tuple[str, str], str] = {}
        for point in self.variants.values():
            for arm in point.trainings:
                pasts: dict[str, tuple[Any, ...]] = {BASE: (self.training_tree.branches[arm.key],)}
                for name, stage in point.tree.stages.items():
                    if arm.name in point.tree.arms[name]:
                        settings = msgspec.json.encode((stage, point.train_config(name)))
                        draws = (arm.replicate.tuning_seed, arm.interventions)
                        pasts[name] = (*pasts[point.tree.parent(name)], name, settings, *draws)
                owners |= {(arm.key, name): first.setdefault(past, arm.key) for name, past in pasts.items()}
        return owners

    def pretraining_of(self, arm: Arm) -> Pretraining:
        """How `arm` is pretrained. A cooldown of its own replaces the study's decay."""
        if arm.cooldown is None:
            return self.pretraining
        decay_fraction = 1 - self.budget.step_at(arm.cooldown) / self.budget.steps
        schedule = msgspec.structs.replace(self.pretraining.schedule, decay_fraction=decay_fraction)
        return msgspec.structs.replace(self.pretraining, schedule=schedule)


def load_study(path: Path | str, changes: Sequence[str] = ()) -> Study:
    """Read and check a study file, or one that comes with the suite, by its name. `changes` replace settings, such as
    "pretraining.optimizer.lr=3e-4". Relative paths, which start at the file's folder, become absolute.

    Raises UsageError that names the file, the key, its value and what to write instead.
    """
    path, known = Path(path), sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if not path.is_file() and str(path) in known:
        path = STUDIES / f"{path}.yaml"
    missing = f"no such study file; name a file, or one of those that come with the suite: {', '.join(known)}"
    raw, where = read_yaml(path, missing), str(path)
    for change in changes:
        where = f"{where} with --set {change}"
        raw = changed(raw, change, where)
    study = parse_study(sized(raw, path.parent), where)
    for part in (study, *study.variants.values()):
        anchor(part, path.parent)
        part.evaluation.anchor_paths(path.parent)
        anchor_keys(part.tokenizer, ("folder", "gguf"), path.parent)
        anchor_keys(part.model, ("weights",), path.parent)
    return study


def parse_study(raw: Any, where: str) -> Study:
    return parse(raw, Study, where)


def study_yaml(study: Study) -> str:
    """The study with all defaults written out, as YAML that `load_study` reads back to an equal study."""
    return dump_yaml(msgspec.to_builtins(study), width=120)
