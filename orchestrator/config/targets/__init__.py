"""Whether a `_target_` exists and takes the arguments given, without importing it.

check.py             the nodes of a configuration against signatures: the entrance, `Targets`
callbacks.py         callbacks that Lightning refuses side by side
source.py            a signature, read from source: imports and base classes followed
signature.py         what a target takes
dataclass_fields.py  the parameters that `@dataclass` makes of a class body
annotation.py        the plain values that a parameter allows, where its annotation says so plainly
module.py            modules, found and parsed
scope.py             the names that a body binds
answer.py            what a subprocess said where source cannot tell, kept on disk
probe.py             that subprocess: a script of its own, which does import the target

It builds nothing. Of values it refuses only what a plain annotation (`int`, `str | None`, ...) cannot mean.
"""

from orchestrator.config.targets.check import Targets
from orchestrator.config.targets.signature import Parameter, Signature

__all__ = ["Parameter", "Signature", "Targets"]
