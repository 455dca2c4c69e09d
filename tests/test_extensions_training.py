"""Extension points of data, training and evolution: each is added from outside the package and used."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_fork import start  # noqa: F401 (a fixture: the command on a stand-in for training)

from bpevo import data, layers, rules
from bpevo.data import LOCAL
from bpevo.evolution import CONTROLLERS, Draw, DrawingController
from bpevo.models import MODELS, Family
from bpevo.rules import parse
from bpevo.runs import RunDatabase
from bpevo.training import (
    OPTIMIZERS,
    SCHEDULES,
    TRANSFORMS,
    Trainer,
    Training,
    TrainingPlan,
    TrainingSettings,
)

RATE, BATCH = 0.01, 16


class Net(nn.Module):
    """A network of one's own: a batch norm and two rule-driven layers of another activation."""

    width: int
    classes: int
    rule: rules.Rule | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool = True):
        carrier = layers.carrier(x.shape[0], self.classes)
        x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x, carrier = layers.Dense(self.width, self.rule, activation=jnp.tanh)(x, carrier)
        x, carrier = layers.Dense(self.classes, self.rule, activation=jnp.tanh)(x, carrier)
        return x + carrier


NET = Family(
    "net-WIDTH (net-8)", r"(\d+)", lambda groups, classes, rule, dtype: Net(int(groups[0]), classes, rule, dtype)
)


def stripes() -> data.Dataset:
    """4x4 images of rows (0) or columns (1)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(np.int32)
    rows = np.indices((4, 4))[0] % 2 * 200
    images = np.stack([rows.T if label else rows for label in labels]) + rng.integers(0, 50, (60, 4, 4))
    images = images[..., None].astype(np.uint8)
    return data.Dataset(
        name="stripes", train_images=images[:48], train_labels=labels[:48], test_images=images[48:],
        test_labels=labels[48:], num_classes=2, flip=False, pad=0, source="made up",
    )  # fmt: skip


@pytest.fixture(scope="module")
def curves() -> dict[str, tuple[list, dict, dict]]:
    """Two steps, then two more, of a model, a data set, an optimizer, a schedule and gradient transforms of one's own: each
    training's results, and its parameters and batch norm's averages after the first two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOCAL, "stripes", stripes)
        patch.setitem(OPTIMIZERS, "sign", lambda: optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g)))
        patch.setitem(SCHEDULES, "halving", lambda steps, epochs: lambda step: 0.5**step)
        patch.setitem(MODELS, "net", NET)
        patch.setitem(TRANSFORMS, "uphill", lambda gradient, params: jax.tree.map(jnp.negative, gradient))
        settings = TrainingSettings(
            model="net-8", optimizer="sign", schedule="halving", weight_decay=0.0, batch_size=BATCH, epochs=2
        )
        dataset = data.load("stripes")
        plan = TrainingPlan(
            settings=settings,
            learning_rates=(RATE,),
            dataset=dataset,
            split=data.train_validation_split(dataset, 2 * BATCH),
            seed=0,
        )
        trainer = Trainer(plan.task(transforms=("uphill",)), plan.examples(), capacity=3, devices=jax.devices()[:1])
        g = parse("g").to_equation(3)
        orders = {"stays": Training(g, 0.0), "down": Training(g, RATE), "up": Training(g, RATE, transform="uphill")}
        for slot, order in enumerate(orders.values()):
            trainer.start(slot, order)
        first = trainer.advance()
        states = trainer._states
        kept = [jax.tree.map(lambda x, k=k: np.array(x[k]), (states.params, states.batch_stats)) for k in range(3)]
        second = trainer.advance()
        return {name: ([first[k], second[k]], *kept[k]) for k, name in enumerate(orders)}


def test_a_model_of_ones_own_learns(curves):
    losses = [e.train_loss for e in curves["down"][0]]
    assert losses[1] < losses[0] and set(curves["down"][1]) == {"BatchNorm_0", "Dense_0", "Dense_1", "Dense_2"}


def test_batch_norms_averages_are_kept_from_step_to_step_and_used_in_evaluation(curves):
    """Of the training whose parameters stay: two batches by hand, each with half the weight of the one after it."""
    curve, params, stats = curves["stays"]
    split = data.train_validation_split(stripes(), 2 * BATCH)
    mean = split.train_images.mean(0)

    def below(images):
        x = (images.astype(np.float32) - mean) / 255
        return x.reshape(len(x), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    shuffle = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 2)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle, 0), 2 * BATCH))
    one, two = (below(split.train_images[indices]) for indices in (order[:BATCH], order[BATCH:]))
    average, variance = one.mean(0) / 4 + two.mean(0) / 2, 1 / 4 + one.var(0) / 4 + two.var(0) / 2
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], average, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"], variance, rtol=1e-4)
    x = (below(split.eval_images) - average) / np.sqrt(variance + 1e-5)
    for name in ("Dense_1", "Dense_2"):
        x = np.tanh(x) @ params[name]["kernel"] + params[name]["bias"]
    losses = np.log(np.exp(x).sum(1)) - x[np.arange(len(x)), split.eval_labels]
    assert curve[0].eval_loss == pytest.approx(losses.mean(), rel=1e-4)
    assert curve[0].eval_accuracy == pytest.approx(np.mean(x.argmax(1) == split.eval_labels))


def moves(curves, name: str) -> np.ndarray:
    """How far each parameter went in the first two steps."""
    there, before = curves[name][1], curves["stays"][1]
    return np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (there, before)), strict=True)])


def test_an_optimizer_and_a_schedule_of_ones_own_decide_every_step(curves):
    """Signs of gradients times 1 and 1/2 of the rate: no other distances are possible."""
    found = np.unique(np.round(np.abs(moves(curves, "down")) / RATE, 3))
    assert set(found) <= {0.0, 0.5, 1.0, 1.5} and {0.5, 1.5} & set(found)


def test_a_gradient_transform_of_ones_own_changes_the_gradient(curves):
    losses = {name: [e.train_loss for e in curve] for name, (curve, *_) in curves.items()}
    assert losses["down"][1] < losses["stays"][1] < losses["up"][1]
    assert np.abs(moves(curves, "up")).max() == pytest.approx(1.5 * RATE, rel=1e-3)


def test_a_data_set_of_ones_own_is_known_by_name_and_others_are_not(monkeypatch):
    monkeypatch.setitem(LOCAL, "stripes", stripes)
    assert data.load("stripes").train_images.shape == (48, 4, 4, 1)
    with pytest.raises(data.DataError, match="nearest valid name is 'stripes'"):
        data.load("stripess")


class Newest(DrawingController):
    """Mutates the newest result."""

    newest = None

    def tell(self, result):
        super().tell(result)
        self.newest = result

    def draw(self, rng):
        if self.newest is None:
            return Draw(self.space.random(rng))
        equation, change = self.space.mutated(rng, self.newest.equation)
        return Draw(equation, self.newest.id, (change,))


def test_a_controller_of_ones_own_searches_by_name(start, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(CONTROLLERS, "newest", Newest)
    start(tmp_path, "--controller=newest", "--max_evaluations=14", "--lag=4", "--slots=4")
    with RunDatabase.reading(tmp_path) as database:
        proposals = database.proposals()
        assert [p.id for p in proposals if p.confirms is not None] == [10]
        assert [p.parent for p in proposals if p.id != 10] == [None] * 4 + [0, 1, 2, 3, 4, 5, 7, 8, 9]
        assert database.settings()["controller"] == "newest"


def test_random_search_breeds_nothing_and_an_unknown_controller_is_named(start, tmp_path):  # noqa: F811
    start(tmp_path, "--controller=random", "--max_evaluations=14", "--lag=4", "--slots=4")
    with RunDatabase.reading(tmp_path) as database:
        assert not any(p.changes for p in database.proposals()) and len(database.proposals()) == 14
    with pytest.raises(ValueError, match="--controller=rndom must be one of paper, random"):
        start(tmp_path / "other", "--controller=rndom")
