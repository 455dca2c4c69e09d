"""Let rules climb: `python -m bpevo.funnel --workdir=runs/mine --top=50 --stages='keep=20; epochs=10 keep=8; model=… keep=3'`.

Takes the best rules of the search in --workdir, or --rules, through stages, each with more data, more epochs, another network:
an evaluation (python -m bpevo.evaluate) of its own, in which controls and rules are tuned alike and those that are best on
fresh seeds go on; the last one ends with the test set. What each stage changes holds in the next ones too. Everything goes into
--workdir/SCENARIO-1, -2, …; starting again runs only what is missing. Ends with a table of who went how far, by what lead over
tuned backprop, and what each stage cost.
"""

from bpevo.command import main, definitions  # isort: skip (main comes before jax)
from bpevo.command.funnelling import run

if __name__ == "__main__":
    main.start(
        "bpevo.funnel", (definitions.define_common, definitions.define_evaluation, definitions.define_funnel), run
    )
