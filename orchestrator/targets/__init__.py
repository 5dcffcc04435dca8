"""Whether a `_target_` exists and takes the arguments given, without importing it.

    check             the nodes of a configuration against signatures: the entrance, `Targets`
    source            a signature, read from source: imports and base classes followed
    dataclass_fields  the parameters that `@dataclass` makes of a class body
    annotation        the plain values that a parameter allows, where its annotation says so plainly
    module, scope     modules found and parsed; the names that a body binds
    answer            what a subprocess said where source cannot tell, kept on disk
    probe             that subprocess: a script of its own, which does import the target

It builds nothing. Of values it refuses only what a plain annotation (`int`, `str | None`, ...) cannot mean.
"""

from orchestrator.targets.check import Targets
from orchestrator.targets.signature import Parameter, Signature

__all__ = ["Parameter", "Signature", "Targets"]
