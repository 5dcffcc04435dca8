"""`python -m orchestrator.testing VERB ...`: the command line, its runs played by the scripted worker."""

from __future__ import annotations

import functools
import sys
from unittest import mock

from orchestrator import api, cli
from orchestrator.testing.launches import WORKER

if __name__ == "__main__":
    with mock.patch.object(api, "launch", functools.partial(api.launch, worker=WORKER)):
        sys.exit(cli.main())
