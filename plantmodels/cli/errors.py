"""How a command line reports errors: expected errors are one line and exit status 1, bugs keep their traceback."""

from traceback import walk_tb
from typing import Any, Final

import click

from plantmodels.data.image_files import printable_name
from plantmodels.errors import PlantModelsError, is_out_of_memory
from plantmodels.extras import describe_missing
from plantmodels.foreign_text import quote_error

_COMMAND: Final = "\n  plantmodels "
_PACKAGES: Final = ("plantmodels.", "mlflow_plugins.")


class KnownErrors(click.Group):
    """Turns expected errors into one line on standard error and exit status 1.

    Expected are `PlantModelsError`, a library that no installed extra has brought, and lack of memory. If a thread of a
    library gets no memory, the library may end the process before this code can report it.
    """

    extra = "build"
    """The extra to name where several would bring a missing library."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PlantModelsError as error:
            prefix = "memory ran out: " if is_out_of_memory(error) else ""
            raise click.ClickException(_join_lines(prefix + str(error))) from error
        except ModuleNotFoundError as error:
            if (line := describe_missing(error, self.extra)) is None:
                raise
            raise click.ClickException(f"{ctx.invoked_subcommand}: {line}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = quote_error(error)
            place = f"{ctx.invoked_subcommand}, in {_find_place(error)}"
            raise click.ClickException(f"memory ran out: {place} ({reason})") from error


def _join_lines(message: str) -> str:
    """Return a message as one line; only the commands of a way out, which are indented, keep lines of their own."""
    return _COMMAND.join(printable_name(" ".join(part.split())) for part in message.split(_COMMAND))


def _find_place(error: BaseException) -> str:
    """Return the name of the innermost function of this project that the error passed through."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    places = [f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}" for frame in frames]
    return [__name__, *(place for place in places if place.startswith(_PACKAGES))][-1]
