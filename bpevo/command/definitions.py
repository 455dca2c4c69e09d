"""The flags of the commands: names, defaults and help. `plans` reads them."""

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from bpevo.evolution import CONTROLLERS, OVER, EvolutionSettings, Networks
from bpevo.report.metrics import KINDS
from bpevo.training import DTYPES, OPTIMIZERS, SCHEDULES, TrainingSettings

flags.disclaim_key_flags()  # they belong to the command that defines them: its --help shows them

_DEFAULTS = TrainingSettings()


class _Into:
    """absl's DEFINE functions, for one FlagValues: `_Into(values).string(...)`."""

    def __init__(self, values: flags.FlagValues):
        self._values = values

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        return functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=self._values)


def define_common(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of every command that trains."""
    define = _Into(values)
    define.string("workdir", None, "Folder of the run: its database and reports. Starting again on it continues.")
    define.string(
        "dataset",
        "cifar10",
        "digits (no download), cifar10, cifar100, svhn_cropped or another TFDS set; a file.npz with x_train, y_train, x_test, "
        "y_test; or package.module:function, which returns these four.",
    )
    define.string("data_dir", None, "TFDS directory; where the dataset is, or is prepared. Default: TFDS's own.")
    define.integer("train_examples", None, "Train on the first so many of the training examples. Default: all.")
    define.string(
        "model",
        _DEFAULTS.model,
        "wrn-DEPTH-WIDTH (wrn-10-1, wrn-16-2, wrn-28-10), mlp-HIDDEN-… (mlp-64-64), or package.module:factory, a function "
        "that makes a Linen or NNX module. A search takes several, separated by ';': see --fitness_over.",
    )
    define.string(
        "optimizer",
        _DEFAULTS.optimizer,
        f"{', '.join(OPTIMIZERS)} (SGD without or with momentum 0.9, Adam), or an optimizer of optax whose step needs gradients "
        "and parameters only, with arguments if you like: adamw, lion, sgd:momentum=0.9,nesterov=True.",
    )
    define.list(
        "learning_rates",
        ["0.1"],
        "Each equation is tried with each of these. A search trains it with the best; the grid of what is tuned grows.",
    )
    define.float(
        "weight_decay",
        _DEFAULTS.weight_decay,
        "Of kernels (parameters of two axes or more): the optimizer's own where it has one (adamw, lion), else the L2 gradient, "
        "a multiple of the weight.",
    )
    define.integer("batch_size", _DEFAULTS.batch_size, "Examples per step.")
    define.integer("epochs", _DEFAULTS.epochs, "Epochs of each training.")
    define.string(
        "schedule",
        _DEFAULTS.schedule,
        f"Learning rate over time: {', '.join(SCHEDULES)}; paper: constant up to 50 epochs, then warmup_cosine.",
    )
    define.enum("compute_dtype", _DEFAULTS.compute_dtype, tuple(DTYPES), "Of the network; rules compute in float32.")
    define.integer(
        "slots",
        None,
        "Candidates in training at once, over all devices. Default: 4 a CPU device, what fits up to 16 an accelerator.",
    )
    define.enum(
        "pool", "local", ("local", "ray"), "Where to train: this process's devices, or workers on a Ray cluster."
    )
    define.string(
        "ray_address",
        None,
        "With --pool=ray: the cluster, HOST:PORT or auto. Default: one on this machine that ends with the run.",
    )
    define.integer(
        "workers",
        None,
        "With --pool=ray: workers at most, each an accelerator or its share of the CPUs. --slots is then of each. Default: as "
        "many as there is room for.",
    )
    define.integer(
        "worker_cpus",
        None,
        "With --pool=ray and no accelerators: CPUs of each worker. Default: so many that --workers find room.",
    )
    define.integer("seed", 0, "Root of everything random.")
    define.float(
        "max_hours", None, "End after so many hours as if terminated (exit code 143); the same command continues."
    )
    define.enum(
        "metrics",
        None,
        KINDS,
        "Also write every training's curve and the running figures into the run's folder: metrics.csv, or an event file for "
        "TensorBoard (needs tensorboardX).",
    )
    define.bool("selfcheck", True, "Check first that this machine and this JAX compute right numbers.")


def define_search(values: flags.FlagValues = flags.FLAGS) -> None:
    define = _Into(values)
    define.float(
        "checkpoint_minutes",
        10.0,
        "A training that lasts longer is saved so often, and continues from there. 0, or a pool: never.",
    )
    define.string(
        "controller",
        "paper",
        f"What draws the equations: {', '.join(CONTROLLERS)} (the paper's evolution, random search, regularised evolution by "
        "tournaments among the youngest, tournaments within kinds of rules).",
    )
    define.integer(
        "max_evaluations",
        1000,
        "Trials at a learning rate, trainings and confirmations, on every network; controls and selection come on top.",
    )
    define.enum(
        "fitness_over",
        Networks.over,
        OVER,
        "With several networks in --model, on which a rule trains one after the other: its fitness is its lead over tuned "
        "backprop on the network where that is least, or the mean of its leads. --stop_epochs count on from network to network.",
    )
    define.integer("max_parts", 3, "Parts of the longest equation.")
    define.integer(
        "elite_size",
        None,
        "N: the first N equations are random; then parents come from the N best with probability p, else from the rest "
        "(aging: from the N youngest). Default: a tenth of the equations that the budget affords, 10 to 1,000.",
    )
    define.float("elite_probability", 0.7, "p, of --controller=paper.")
    define.integer(
        "tournament",
        EvolutionSettings.tournament,
        "Results of which the best is the parent, with --controller=aging and niches.",
    )
    define.list("mutations", ["1"], "Weights of k = 1, 2, … mutations at once.")
    define.string(
        "initial",
        "random",
        "random (N equations), known (backprop and its kin), or as --rules of an evaluation: names or texts separated by ';', or "
        "a file, one per line.",
    )
    define.list("operands", [], "Only these, such as g,h,mean(g). Default: all.")
    define.list("unaries", [], "Only these, such as relu,clip (all its constants),clip:0.5. Default: all.")
    define.list("binaries", [], "Only these, such as add,mul,min. Default: all.")
    define.integer(
        "lag",
        None,
        "Proposal n is drawn from the results up to n - lag. Default: what keeps the slots busy, at most a quarter of "
        "what is bred.",
    )
    define.list("stop_epochs", [], "Rungs: after these epochs the bad candidates stop.")
    define.float(
        "stop_quantile", 0.5, "A candidate goes on only if it reaches this quantile of the earlier ones there."
    )
    define.integer("halving_eta", 0, "Successive halving: rungs at epochs/η^k, go on in the top 1/η. 0: off.")
    define.bool("equivalence", True, "Train rules that compute the same only once.")
    define.integer("top", 5, "Best rules trained again on fresh seeds at the end.")
    define.integer("repeats", 5, "Fresh seeds of each.")
    define.string("fork_from", None, "Another run's workdir: a new run begins with what that one found.")


def define_sweep(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of `bpevo.sweep` beside those of a search."""
    flags.DEFINE_multi_string(
        "vary",
        [],
        "FLAG=VALUE|VALUE, such as 'optimizer=sgd|momentum': a search for each value; given several times, for each "
        "combination. Each has a folder of its own in --workdir.",
        flag_values=values,
    )


def define_evaluation(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of `bpevo.evaluate` beside the common ones."""
    define = _Into(values)
    define.string(
        "scenario",
        "evaluation",
        "Name of the evaluation, a folder of the workdir; settings that are not given are those of the workdir's search. a1, a2, "
        "a3, b1: the paper's.",
    )
    define.string(
        "rules",
        None,
        "Rules to test, beside the controls: names or texts separated by ';', among them table1 or one of its columns "
        "(a1_sgd, b1_momentum, …); or a file, one per line. Any with ' | ' and block_normalised, clip_global_norm, lars, "
        "grafted (backprop's length in every tensor), adam.",
    )
    define.integer("top", 100, "Best rules of the workdir's search that enter the selection, if there is a search.")
    define.integer("finalists", 10, "Rules of the search that go on from the selection to the test set.")
    define.integer("tuning_repeats", 1, "Seeds of each learning rate in the tuning.")
    define.integer("selection_repeats", 5, "Fresh seeds of each rule of the search in the selection.")
    define.integer("repeats", 10, "Fresh seeds of each rule on the full training set, for the test accuracy.")
    define.integer("eval_examples", None, "Only the first so many validation and test examples. Default: all.")
    define.integer("ablate", 0, "Best rules (by validation) whose components are removed in turn.")
    define.bool("alignment", False, "Measure angle and norm ratio to the true gradient's signal in every unit.")


def define_funnel(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flag of `bpevo.funnel` beside those of an evaluation."""
    define = _Into(values)
    define.string(
        "stages",
        None,
        "Stages separated by ';', each of settings that change from it on, and how many rules go on from it: "
        "'train_examples=500 keep=20; epochs=10 keep=8; model=wrn-10-1 keep=3'.",
    )
    values.set_default("scenario", "funnel")
