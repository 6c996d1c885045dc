"""Click commands of the front doors: one line for what the user can mend, options in sections."""

from collections.abc import Sequence
from typing import Any

import click

from dnnlib.errors import UserError


class UserCommand(click.Command):
    """A command that exits with one line and a status where it meets a `UserError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; this is the border that no `UserError` crosses."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if error.traceback:
                click.echo(error.traceback, err=True)
            if error.exit_status == click.UsageError.exit_code:
                raise click.UsageError(str(error), ctx) from error
            click.ClickException(str(error)).show()
            raise click.exceptions.Exit(error.exit_status) from error


class SectionedCommand(UserCommand):
    """A command with many options.

    Args:
        sections: Lists of `click.Option` by title, in the order of the help text.
    """

    def __init__(
        self,
        *args: Any,
        sections: dict[str, list[click.Option]],
        params: Sequence[click.Parameter] = (),
        **kwargs: Any,
    ) -> None:
        given = [option for options in sections.values() for option in options]
        super().__init__(*args, params=[*params, *given], **kwargs)
        self.sections = dict(sections)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under its title."""
        help_option = self.get_help_option(ctx)
        sections = self.sections | {"Help": [] if help_option is None else [help_option]}
        for title, options in sections.items():
            records = [option.get_help_record(ctx) for option in options]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])
