"""Subcommands of `lab`, one module each: `HELP`, `configure(parser)`, `main(args)`. See lab.cli."""
