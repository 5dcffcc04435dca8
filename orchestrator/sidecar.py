"""The name by which version 0.1 starts `tracking.sidecar`; it may go in version 1.0."""

import runpy

if __name__ == "__main__":
    runpy.run_module("orchestrator.tracking.sidecar", run_name="__main__", alter_sys=True)
