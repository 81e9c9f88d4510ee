"""The command line: `plantmodels export | verify | inspect | compare | predict | sign | train | distill`."""

from plantmodels.cli.commands import main

__all__ = ["main"]
