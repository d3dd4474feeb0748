"""`python -m dice` is the console script `dice`."""

from dice.cli.main import main

raise SystemExit(main())
