"""Registers `optimum-cli ishrink` with Optimum's command line."""

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from optimum_ishrink import cli


class IShrinkCommand(BaseOptimumCLICommand):
    """The `optimum-cli ishrink` command: the same verbs as the stand-alone `ishrink`."""

    COMMAND = CommandInfo(name="ishrink", help=cli.DESCRIPTION)

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the verbs to Optimum's parser."""
        cli.add_verbs(parser)

    def run(self) -> None:
        """Run the requested verb and exit with its status."""
        raise SystemExit(cli.run(self.args, self.parser))


REGISTER_COMMANDS = [IShrinkCommand]
