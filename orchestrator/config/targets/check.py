"""The check of a resolved configuration's nodes against the signatures of their targets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.build import SAVE_DIR, SPECIAL
from orchestrator.config.targets.annotation import Accepts
from orchestrator.config.targets.answer import Answers, is_installed
from orchestrator.config.targets.callbacks import check_together
from orchestrator.config.targets.module import Modules
from orchestrator.config.targets.signature import AbsentError, Parameter, Signature, UnsureError
from orchestrator.config.targets.source import Class, Source
from orchestrator.errors import ConfigError, nearest
from orchestrator.system import processes as process

if TYPE_CHECKING:
    from orchestrator.config.experiment import ComposedExperiment


class Targets:
    """Checks `_target_` nodes, as Hydra's `instantiate` reads them, without importing what they name.

    `search_path` are the project's roots, then `sys.path`; a module found only `elsewhere` is missing in a run.
    `run` starts the subprocess that is asked where source is not enough. Names are checked once for calls that
    look the same, values every time, so that each of a thousand points of a sweep costs microseconds.
    """

    def __init__(
        self,
        search_path: Sequence[str],
        cache_dir: Path,
        *,
        elsewhere: Sequence[str] = (),
        run: process.Run = process.run,
    ) -> None:
        self._search_path, self._elsewhere = tuple(search_path), Modules(elsewhere)
        self._modules = Modules(search_path)
        self._source = Source(self._modules)
        self._answers = Answers(search_path, cache_dir, run)
        self._signatures: dict[str, Signature] = {}
        self._lineages: dict[str, list[Class]] = {}
        self._typed: dict[str, dict[str, Accepts]] = {}
        self._models: set[str] = set()
        self._right: set[tuple[object, ...]] = set()

    def signature(self, target: str) -> Signature:
        """Return the signature of a target. Raises ConfigError if there is no such target."""
        if target not in self._signatures:
            self._signatures[target] = self._read(target)
        return self._signatures[target]

    @property
    def files(self) -> set[Path]:
        """The files outside installed packages that signatures were read from."""
        return {
            Path(file).resolve() for file in self._modules.files() | self._answers.files if not self._is_installed(file)
        }

    def _is_installed(self, file: str) -> bool:
        holding = [entry for entry in self._search_path if entry and Path(file).is_relative_to(entry)]
        return is_installed(max(holding, key=len, default=""))

    def takes(self, target: str, name: str) -> bool:
        """Return whether a target exists and has an argument of that name."""
        try:
            return name in self.signature(target).keywords
        except ConfigError:
            return False

    def lineage(self, target: str) -> list[Class]:
        """Return a class and its base classes, the nearest first; empty if source is not enough."""
        if target not in self._lineages:
            try:
                self._lineages[target] = self._source.lineage(target)
            except (UnsureError, AbsentError):
                self._lineages[target] = []
        return self._lineages[target]

    def check(self, node: Mapping[str, object], *, where: str, given: Collection[str] = ()) -> None:
        """Check a node and all nodes nested in it; `given` are arguments that the engine passes itself.

        `where` is the node's path in the configuration. Raises ConfigError for the first error.
        """
        self._walk(node, where, given, template=False)

    def check_model(self, target: str) -> None:
        """Refuse a class that is a torch module but not a LightningModule, as far as its source shows that."""
        if target not in self._models and self._source.is_bare_module(target):
            raise ConfigError(
                f"model: {target} is not a LightningModule",
                why="it is a torch.nn.Module, and does not define losses and optimizers",
                fix="name a LightningModule in model._target_, and give it this one as an argument",
            )
        self._models.add(target)

    def _walk(self, value: Any, where: str, given: Collection[str], *, template: bool) -> None:
        """Visit a tree; inside a `_recursive_: false` node, the target itself completes the arguments."""
        if isinstance(value, Mapping) and "_target_" in value:
            self._check_node(value, where, given, template=template)
            template = template or value.get("_recursive_", True) is False
        named = isinstance(value, Mapping)
        for key, child in value.items() if named else enumerate(value):
            if isinstance(child, dict | list):
                self._walk(child, f"{where}.{key}" if named else f"{where}[{key}]", (), template=template)

    def _check_node(self, node: Mapping[str, Any], where: str, given: Collection[str], *, template: bool) -> None:
        target, positional = node["_target_"], _positional(node, where)
        _check_special(node, where)
        exempt = template or node.get("_partial_") is True
        call = (str(target), len(positional), exempt, tuple(given), tuple(node))
        if call not in self._right:
            self._check_names(node, where, given, exempt=exempt)
            self._right.add(call)
        typed = self._typed[target]
        for name, value in node.items():
            if name in typed and not typed[name].admits(value):
                raise _wrong_value(f"{where}.{name}", value, target, typed[name])
        if positional:
            self._check_positional(target, positional, where)

    def _check_names(self, node: Mapping[str, Any], where: str, given: Collection[str], *, exempt: bool) -> None:
        target = node["_target_"]
        signature = self._located(target, where)
        arguments = {str(key): value for key, value in node.items() if not _is_hydras(str(key))}
        call = _Call(target=target, signature=signature, where=where)
        taken = call.take_positional(_positional(node, where))
        for name, value in arguments.items():
            call.take_keyword(name, value, taken)
        call.take_given(given)
        if not exempt:
            call.refuse_missing({*arguments, *given, *taken})
        self._typed[target] = {p.name: p.accepts for p in signature.parameters if p.accepts is not None}

    def _check_positional(self, target: str, values: Sequence[object], where: str) -> None:
        for index, (parameter, value) in enumerate(zip(self.signature(target).positional, values, strict=False)):
            if parameter.accepts is not None and not parameter.accepts.admits(value):
                raise _wrong_value(f"{where}._args_[{index}]", value, target, parameter.accepts)

    def _located(self, target: object, where: str) -> Signature:
        if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
            raise ConfigError(
                f"{where}._target_ is {target!r}",
                why="a target is the dotted name of a class or function",
                fix="write it as package.module.Name",
            )
        try:
            return self.signature(target)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.what}", why=error.why, fix=error.fix) from error

    def _read(self, target: str) -> Signature:
        try:
            try:
                return self._source.signature(target)
            except UnsureError:
                return self._answers.signature(target)
        except AbsentError as absent:
            raise self._missing(target, absent) from absent

    def _missing(self, target: str, absent: AbsentError) -> ConfigError:
        if not absent.owner and (module := self._elsewhere.find(absent.name)):
            return ConfigError(
                f"target {target!r} is on PYTHONPATH only",
                why="a run has the frozen project and this environment's packages on its search path",
                fix=f"move {module.name} into the project, or install it: pip install --editable FOLDER",
            )
        known = absent.known if absent.owner else self._modules.top_level()
        install = "" if absent.owner else ", or install the package that ships it in this environment"
        place = f"{absent.owner!r} has no {absent.name!r}" if absent.owner else f"no module {absent.name!r}"
        return ConfigError(
            f"target {target!r} does not exist",
            why=f"{place}{nearest(absent.name, known)}",
            fix=f"correct `_target_`{install}",
        )


class _Call:
    """One call to check: a target, its signature, and its path in the configuration."""

    def __init__(self, *, target: str, signature: Signature, where: str) -> None:
        self._target, self._signature, self._where = target, signature, where

    def take_positional(self, values: Sequence[object]) -> set[str]:
        """Check `_args_`, and return the names of the parameters that it fills."""
        parameters = self._signature.positional
        if len(values) > len(parameters) and not self._signature.var_positional:
            raise ConfigError(
                f"{self._where}._args_ has {len(values)} values for {self._target}",
                why=f"it takes {len(parameters)} by position: {_listed(p.name for p in parameters)}",
                fix=f"shorten {self._where}._args_",
            )
        return {p.name for p in parameters[: len(values)]}

    def take_keyword(self, name: str, value: object, taken: Collection[str]) -> None:
        if name in taken and name in self._signature.keywords:
            raise ConfigError(
                f"{self._where}.{name}={_shown(value)} is given twice to {self._target}",
                why="`_args_` already fills it by position",
                fix=f"remove {self._where}.{name}, or shorten {self._where}._args_",
            )
        if not self._takes(name):
            raise ConfigError(
                f"{self._where}.{name}={_shown(value)}: {self._target} has no argument {name!r}"
                + nearest(name, self._signature.keywords),
                why=self._valid(name),
                fix=f"correct or remove {self._where}.{name}",
            )

    def take_given(self, given: Collection[str]) -> None:
        for name in given:
            if not self._takes(name):
                raise ConfigError(
                    f"{self._where}: {self._target} has no argument {name!r}" + nearest(name, self._signature.keywords),
                    why=f"the engine passes it; {self._valid(name)}",
                    fix=f"name a `_target_` in {self._where} that takes {name!r}",
                )

    def refuse_missing(self, filled: Collection[str]) -> None:
        missing = [p for p in self._signature.parameters if p.required and p.name not in filled]
        if not missing:
            return
        names = _listed(p.name for p in missing)
        raise ConfigError(
            f"{self._where}: {self._target} needs {names}",
            why="it has no default value" if len(missing) == 1 else "they have no default values",
            fix=_how_to_give(missing, self._where),
        )

    def _takes(self, name: str) -> bool:
        return self._signature.var_keyword or name in self._signature.keywords

    def _valid(self, name: str) -> str:
        if any(p.name == name for p in self._signature.parameters):
            return "it is taken by position only: use `_args_`"
        keywords = self._signature.keywords
        return f"it takes {_listed(keywords)}" if keywords else "it takes no arguments by name"


def _wrong_value(key: str, value: object, target: str, accepts: Accepts) -> ConfigError:
    return ConfigError(
        f"{key} is {_shown(value)}", why=f"{target} takes {accepts}", fix=f"give {key} {accepts}, or remove it"
    )


def _is_hydras(key: str) -> bool:
    return len(key) > 2 and key.startswith("_") and key.endswith("_")


def _check_special(node: Mapping[str, object], where: str) -> None:
    """Refuse an unknown special key such as `_partail_`, or a value that its key does not allow."""
    for key in filter(_is_hydras, map(str, node)):
        if key not in SPECIAL:
            raise ConfigError(
                f"{where}.{key} is unknown{nearest(key, SPECIAL)}",
                why=f"the keys with underscores at both ends are {_listed(SPECIAL)}",
                fix=f"correct or remove {where}.{key}",
            )
        allowed = SPECIAL[key]
        if allowed and not any(
            node[key] is value or (isinstance(value, str) and node[key] == value) for value in allowed
        ):
            raise ConfigError(
                f"{where}.{key} is {_shown(node[key])}",
                why=f"it is one of {_listed(map(str, allowed))}",
                fix=f"{where}.{key}={str(allowed[0]).lower()}",
            )


def _positional(node: Mapping[str, object], where: str) -> Sequence[object]:
    values = node.get("_args_", [])
    if not isinstance(values, list | tuple):
        raise ConfigError(
            f"{where}._args_ is {_shown(values)}",
            why="arguments by position are a list",
            fix=f"write {where}._args_ as [...]",
        )
    return values


def _how_to_give(missing: Sequence[Parameter], where: str) -> str:
    by_name = [f"{where}.{p.name}" for p in missing if p.kind != "positional_only"]
    by_position = [p.name for p in missing if p.kind == "positional_only"]
    ways = [f"set {_listed(by_name)}"] if by_name else []
    ways += [f"give {_listed(by_position)} in {where}._args_"] if by_position else []
    return ", and ".join(ways)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_experiment(composed: ComposedExperiment, targets: Targets) -> None:
    """Check that the targets of every point exist and take their arguments and values, without importing them."""
    if composed.search:
        wanted = composed.search.definition
        for name, node in (("sampler", wanted.sampler), ("pruner", wanted.pruner)):
            if node:
                targets.check(node, where=f"sweep.optuna.{name}")
    for point in composed.points:
        for section, apart in (("model", ()), ("data", ("version",)), ("trainer", ("callbacks", "logger"))):
            node = {key: value for key, value in point.config[section].items() if key not in apart}
            if node.get("_target_"):
                targets.check(node, where=section)
                _check_whole(node, section)
        targets.check_model(point.config["model"]["_target_"])
        callbacks = {name: node for name, node in (point.config["trainer"].get("callbacks") or {}).items() if node}
        for name, callback in callbacks.items():
            targets.check(callback, where=f"trainer.callbacks.{name}")
            _check_whole(callback, f"trainer.callbacks.{name}")
        check_together({name: (node, targets.lineage(node["_target_"])) for name, node in callbacks.items()})
        for name, logger in (point.config["trainer"].get("logger") or {}).items():
            if logger:
                _check_logger(logger, f"trainer.logger.{name}", targets)


def _check_logger(node: Mapping[str, Any], where: str, targets: Targets) -> None:
    given = {SAVE_DIR} - set(node) if targets.takes(node["_target_"], SAVE_DIR) else ()
    targets.check(node, where=where, given=given)
    _check_whole(node, where)
    is_mlflow = any(cls.node.name == "MLFlowLogger" for cls in targets.lineage(node["_target_"]))
    if is_mlflow and not node.get("tracking_uri"):
        raise ConfigError(
            f"{where} is an MLFlowLogger without a tracking_uri",
            why="a run's own logger feeds MLflow already, and this one would log everything to it again",
            fix=f"remove {where}, or name another server in {where}.tracking_uri",
        )


def _check_whole(node: Mapping[str, object], where: str) -> None:
    if node.get("_partial_"):
        raise ConfigError(
            f"{where}._partial_ is {node['_partial_']}",
            why="a run needs the object itself, and would not call the partial",
            fix=f"~{where}._partial_, and give all arguments",
        )
