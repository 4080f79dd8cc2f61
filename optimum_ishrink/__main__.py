"""`python -m optimum_ishrink`: the same as `ishrink`."""

from .cli import main

raise SystemExit(main())
