"""Measure students: `python -m benchmarks.students halves|bytes|probe`."""

import click

from benchmarks.students.file_bytes import file_bytes
from benchmarks.students.halves import halves
from benchmarks.students.probe import probe


@click.group()
def main() -> None:
    """Measure how a student rejects, what its file is made of, and what a probe on its teacher reaches."""


for command in (file_bytes, halves, probe):
    main.add_command(command)

if __name__ == "__main__":
    main()
