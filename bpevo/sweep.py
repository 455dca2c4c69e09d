"""Several searches: `python -m bpevo.sweep --flagfile=launch/quickstart.flags --vary='optimizer=sgd|momentum' --vary='seed=0|1'`.

One for each combination of what varies, each in a folder of its own in --workdir and as `bpevo.launch` runs it; all other
flags are theirs, and what they say goes into log.txt there. With --pool=ray they share a cluster, each with at most --workers;
else they run one after the other. Ends with a table and a report of all of them. Starting again continues: what has ended is
skipped.
"""

from bpevo.command import main, definitions  # isort: skip (main comes before jax)
from bpevo.command.sweeping import run

if __name__ == "__main__":
    flags = (definitions.define_common, definitions.define_search, definitions.define_sweep)
    main.start("bpevo.sweep", flags, run, elsewhere=lambda values: True)
