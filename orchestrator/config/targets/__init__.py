"""The check that a `_target_` exists and takes the arguments given, without importing it.

check.py             checks the nodes of a configuration against signatures; start here, at `Targets`
callbacks.py         callbacks that Lightning refuses side by side
source.py            reads a signature from source, following imports and base classes
signature.py         the arguments that a target takes
dataclass_fields.py  the parameters that `@dataclass` makes of a class body
annotation.py        the plain values that a simple annotation allows
module.py            modules, found and parsed
scope.py             the names that a body binds
answer.py            the answers of a subprocess, where source is not enough, kept on disk
probe.py             the script that runs in that subprocess, and does import the target

Nothing is built. Values are refused only where they contradict a plain annotation (`int`, `str | None`, ...).
"""

from orchestrator.config.targets.check import Targets
from orchestrator.config.targets.signature import Parameter, Signature

__all__ = ["Parameter", "Signature", "Targets"]
