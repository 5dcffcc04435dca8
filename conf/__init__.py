"""The built-in configuration; Hydra's `pkg://orchestrator.conf` needs this file."""
