"""`python -m dice` is the console script `dice`."""

from dice.cli import main

raise SystemExit(main())
