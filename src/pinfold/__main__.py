"""`python -m pinfold`."""

from pinfold.cli.main import main

main()
