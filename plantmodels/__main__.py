"""`python -m plantmodels`: the same program as the command `plantmodels`."""

from plantmodels.cli import main

main(prog_name="plantmodels")
