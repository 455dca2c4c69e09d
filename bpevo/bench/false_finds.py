"""How often the whole pipeline announces a find where there is none: `python -m bpevo.bench.false_finds --searches=200`.

Each search evolves rules of a space in which none can be better than backprop, an MLP on the digits; its winners are tuned,
selected and tested beside all controls as `bpevo.evaluate` does it, and the table of that evaluation is asked for finds.
Every rule trains from seeds of its own, so rules of one function differ by luck alone; what would tell that they are one
function is switched off. `--space=disguises` holds backprop in other words and with noise that does not matter,
`--space=rescalings` backprop times constants.
"""

import dataclasses
import itertools
import pathlib
import sys
import tempfile
import time
import zlib

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from absl import app, flags
from rich.console import Console
from scipy import stats

from bpevo import data
from bpevo.command import process
from bpevo.evaluation import Evaluation, EvaluationPlan, Program, Standing, controls, standings
from bpevo.evaluation.treatments import winners
from bpevo.evolution import CONTROLLERS, EvolutionSettings, SameText, SearchSpace
from bpevo.runs import RunDatabase
from bpevo.runs.provenance import versions
from bpevo.search import Search, SearchPlan
from bpevo.training import Trainer, TrainingPlan, TrainingSettings
from bpevo.workers import Job, LocalWorkers, Outcome

SETTINGS = TrainingSettings(model="mlp-16", batch_size=32, epochs=2, weight_decay=0.0)
RATES, TRAIN_EXAMPLES, SLOTS, MAX_PARTS = (0.8, 0.2), 256, 8, 3
TRAININGS = 90  # of a search
SPACES = {
    "disguises": SearchSpace(
        MAX_PARTS, ["g"], ["identity", "clip:100", "clip:1000", "mul_noise:0.01", "mul_noise:0.001"], ["left", "min", "max"]
    ),
    "rescalings": SearchSpace(MAX_PARTS, ["g"], ["identity", "scale:0.5", "scale:2", "scale:3"], ["left", "add"]),
}  # fmt: skip


def define_flags() -> None:
    flags.DEFINE_integer("searches", 200, "Searches, each followed by its evaluation.", lower_bound=1)
    flags.DEFINE_integer("first", 0, "Number of the first; a search is the same whatever ran before it.", lower_bound=0)
    flags.DEFINE_enum("space", "disguises", tuple(SPACES), "Of the rules.")


class OwnSeeds(LocalWorkers):
    """Workers that train every rule of every search from seeds of its own, where others share those of a replicate."""

    def __init__(self, trainer: Trainer, search: int):
        super().__init__(trainer)
        self._search = search
        self._asked: dict[tuple, Job] = {}

    def submit(self, job: Job) -> None:
        seed = zlib.crc32(f"{self._search} {job.subject} {job.training.replicate}".encode()) >> 1
        own = dataclasses.replace(job, training=dataclasses.replace(job.training, replicate=seed))
        self._asked[own.identity] = job
        super().submit(own)

    def poll(self, meanwhile=lambda: None) -> list[Outcome]:
        return [dataclasses.replace(o, job=self._asked.pop(o.job.identity)) for o in super().poll(meanwhile)]


class Pipeline:
    """Searches and evaluations in programs that are compiled once."""

    def __init__(self, space: str):
        dataset = data.load("digits")
        self._dataset, self._space = dataset, SPACES[space]
        split = data.train_validation_split(dataset, TRAIN_EXAMPLES)
        self._training = TrainingPlan(settings=SETTINGS, learning_rates=RATES, dataset=dataset, split=split, seed=0)
        self._trainers: dict[tuple[bool, Program] | str, Trainer] = {}

    def run(self, number: int, folder: pathlib.Path) -> list[Standing]:
        """The table of one search's evaluation."""
        self._search(number, folder)
        with RunDatabase.reading(folder) as database:
            found = tuple(itertools.islice(winners(database), 10))
        return self._evaluated(number, found, folder / "evaluation")

    def _search(self, number: int, folder: pathlib.Path) -> None:
        evolution = EvolutionSettings(elite_size=8, seed=number)
        plan = SearchPlan(
            space=self._space, evolution=evolution, equivalence=False, max_evaluations=TRAININGS, learning_rates=RATES,
            trial_epochs=1, lag=8, top=1, repeats=1,
        )  # fmt: skip
        training = dataclasses.replace(self._training, held_out=len(self._training.split.eval_labels) // 3)
        if "search" not in self._trainers:
            self._trainers["search"] = training.trainer(MAX_PARTS, SLOTS)
        with RunDatabase.writing(folder) as database:
            database.check_settings(training.fingerprint() | plan.fingerprint(), {}, ())
            controller = CONTROLLERS[plan.controller](plan.space, evolution, (), SameText())
            Search(database, controller, OwnSeeds(self._trainers["search"], number), plan).run()

    def _evaluated(self, number: int, found, folder: pathlib.Path) -> list[Standing]:
        known = controls(SETTINGS.optimizer)
        found = tuple(t for t in found if t not in known)
        plan = EvaluationPlan(controls=known, found=found, learning_rates=RATES, finalists=5)
        with RunDatabase.writing(folder) as database:
            database.check_settings(self._training.fingerprint() | plan.fingerprint(), {}, ())
            evaluation = Evaluation(database, lambda *program: OwnSeeds(self._trainer(*program), number), plan)
            evaluation.run()
            return standings(evaluation.rows, database.settings())

    def _trainer(self, on_test: bool, program: Program) -> Trainer:
        if (on_test, program) not in self._trainers:
            plan = self._training
            if on_test:
                plan = dataclasses.replace(plan, split=data.full_training_split(self._dataset, TRAIN_EXAMPLES))
            settings = dataclasses.replace(SETTINGS, optimizer=program.optimizer or SETTINGS.optimizer)
            task = dataclasses.replace(plan, settings=settings).task(transforms=program.transforms)
            made = Trainer(task, plan.examples(), capacity=SLOTS, max_parts=MAX_PARTS)
            self._trainers[on_test, program] = made
        return self._trainers[on_test, program]


@dataclasses.dataclass
class Count:
    """What the tables of `searches` said."""

    searches: int = 0
    judged: int = 0  # those in which a rule had a verdict
    rules: int = 0  # that had one
    announced: int = 0  # those with a find

    def add(self, table: list[Standing]) -> None:
        verdicts = [row for row in table if row.p is not None]
        self.searches += 1
        self.judged += bool(verdicts)
        self.rules += len(verdicts)
        self.announced += any(row.find for row in verdicts)

    def __str__(self) -> str:
        low, high = stats.binomtest(self.announced, self.judged).proportion_ci(0.95, "exact") if self.judged else (0, 1)
        share = self.announced / max(1, self.judged)
        return (
            f"{self.announced} of {self.judged} searches with a verdict announce a find, {share:.1%} (Clopper-Pearson 95 %: "
            f"{low:.1%} to {high:.1%}); {self.searches - self.judged} had no verdict; {self.rules} rules were judged"
        )


def main(argv: list[str]) -> None:
    del argv
    configure_jax()
    values, console, count = flags.FLAGS, Console(width=None if sys.stdout.isatty() else 150), Count()
    console.print(", ".join(f"{k} {v}" for k, v in versions().items()), highlight=False)
    pipeline, start = Pipeline(values.space), time.monotonic()
    for number in range(values.first, values.first + values.searches):
        with tempfile.TemporaryDirectory() as folder:
            table = pipeline.run(number, pathlib.Path(folder))
        count.add(table)
        for row in table:
            if row.find:
                console.print(
                    f"search {number}: {row.text}, p {row.p:.3f} over {row.hurdle}", highlight=False, markup=False
                )
        if (number + 1) % 10 == 0:
            console.print(f"{time.monotonic() - start:.0f} s: {count}", highlight=False, soft_wrap=True)
    console.print(f"{values.space}: {count}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=process.parse_flags("bpevo.bench.false_finds"))
