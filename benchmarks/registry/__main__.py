"""Benchmarks of the gated registry; each prints a table with its bars.

python -m benchmarks.registry overhead --versions 1000
python -m benchmarks.registry crowd public/models postgresql+psycopg2://mlflow@localhost/bench
python -m benchmarks.registry growth sqlite:///growth.db
python -m benchmarks.registry bucket models-of-330-species
"""

import click

from benchmarks.registry import bucket, crowd, growth, overhead


@click.group()
def main() -> None:
    """Measure the gated registry. Databases that you name must be empty ones, made for this."""


for command in (overhead.overhead, crowd.crowd, growth.growth, bucket.bucket):
    main.add_command(command)

if __name__ == "__main__":
    main()
