"""A race of controllers: what is measured, written down before it is run, and the parts that measure it.

**Arms.** Every controller with trials of three learning rates, and with one rate and none. An arm is charged for all it asks
for, in slot-epochs: trials, trainings, confirmations, and the probe, which counts as `Setting.probe` slot-epochs for each rule
whose function is compared (also those thrown away as duplicates) and as twice that for each rule whose kind is asked for.
Trainings are deterministic, so one that any arm has asked for is remembered for all of them; the charge does not know of that.

**Budget.** What `equations` equations cost with trials, none of which diverges, and with their confirmations. The same for all
arms. Proposals count in order of their ids for as long as their charges fit.

**Primary.** After 1/16, 1/8, 1/4, 1/2 and all of the budget: the rule that ranks first then (what computes backprop is none). It
is tuned on a grid of learning rates that grows until the best lies inside, on the validation examples, and its accuracy is the
mean over FRESH new seeds on examples that nothing was chosen by; a training that diverges counts as 0. Over the search seeds:
mean and 95 % t-interval; at all of the budget one-sided paired t-tests (the pairs share a search seed, hence the seeds of all
trainings) of every arm against the arm `paper` and against the arm `random`, all of a data set together Holm-corrected.
*Savings* of an arm: the share of the budget at which its mean curve (linear in the logarithm of the budget) first reaches the
final mean of `paper`, with a 95 % bootstrap interval over search seeds. No verdict before all seeds are done.

**Secondary.** The final rules, tuned and scored likewise on networks and a data set that the search never saw, with the share of
their trainings that diverged. Tuned backprop stands beside all of it.
"""
