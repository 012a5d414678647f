"""Invoke verbs; each a line or two over `testbed.cli`."""

from invoke import task


@task(help={"only": "pytest -k expression", "fast": "only what needs neither root nor Docker"})
def test(c, only="", fast=False):
    """Run every test this machine can run; what it cannot run is counted and named."""
    from testbed import cli

    cli.exit_with(cli.test, only=only, fast=fast)
