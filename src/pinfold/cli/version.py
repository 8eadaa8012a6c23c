"""`pinfold version`."""

from __future__ import annotations

import json
import os
import platform

import click

import pinfold


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print the version."""
    facts = {
        "pinfold": pinfold.__version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
    }
    click.echo(json.dumps(facts) if as_json else f"pinfold {facts['pinfold']}")
