"""`python -m dice` is the console script `dice`."""

from dice.cli.parser import main

raise SystemExit(main())
