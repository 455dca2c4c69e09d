"""What every command does around its work: flags, signals and exit codes, the set-up of jax, the self-check."""
