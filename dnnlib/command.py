"""Click commands whose options stand in named sections of the help text."""

import click


class SectionedCommand(click.Command):
    """A command with many options.

    Args:
        sections: Lists of `click.Option` by title, in the order of the help text.
    """

    def __init__(self, *args, sections, params=(), **kwargs):
        given = [option for options in sections.values() for option in options]
        super().__init__(*args, params=[*params, *given], **kwargs)
        self.sections = dict(sections)

    def format_options(self, ctx, formatter):
        """Write the options of each section under its title."""
        sections = {**self.sections, "Help": [self.get_help_option(ctx)]}
        for title, options in sections.items():
            with formatter.section(title):
                formatter.write_dl([option.get_help_record(ctx) for option in options])
