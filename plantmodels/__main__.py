"""`python -m plantmodels`: the same program as the command `plantmodels`."""

from plantmodels.cli import main

if __name__ == "__main__":
    main(prog_name="plantmodels")
