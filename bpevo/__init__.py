"""bpevo: a search for better equations than backprop. See README.md; start with `bpevo.rules.compile`."""
